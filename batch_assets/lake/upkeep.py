"""Upkeep of Delta tables: small files put together partition by partition, checkpoints, vacuum.

delta-rs's own ``optimize.compact`` is not used: two of them at once both put the same rows together,
and both copies stay.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow.fs as pafs

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.snapshot import DataFile, Snapshot
from batch_assets.lake.staging import stage
from batch_assets.lake.storage import file_system

TARGET_BYTES = 128 * 1024 * 1024
# A reader opens a checkpoint within seconds of finding it; older versions are read from the commits.
_CHECKPOINT_HOURS = 1


@dataclass(frozen=True)
class Upkeep:
    """What upkeep did to a table: files put together, files they became, files vacuumed."""

    compacted: int
    became: int
    vacuumed: int


def keep_up(
    table: Snapshot, retention_hours: int, report: Callable[[str], None], target_bytes: int = TARGET_BYTES
) -> Upkeep:
    """Compact a table's partitions, write a checkpoint, and remove older ones and files that no version needs any more.

    Args:
        table: the table as it is now.
        retention_hours: files younger than that stay, for readers of older versions and for runs that have written
            files and not committed them yet: longer than the longest run.
        report: takes lines on what was left alone.
        target_bytes: size that files are put together to.

    Raises:
        BatchAssetsError: the table can't be written correctly here.
    """
    table.check_writable()
    compacted, became = compact(table, report, target_bytes)
    table.checkpoint()
    _remove_old_checkpoints(table)
    return Upkeep(compacted, became, len(table.vacuum(retention_hours)))


def compact(table: Snapshot, report: Callable[[str], None], target_bytes: int = TARGET_BYTES) -> tuple[int, int]:
    """Put the small files of each partition together, each partition in a commit of its own.

    A partition that somebody else changes meanwhile is left as it is, as is one that can't be written here.

    Returns:
        The number of files that went, and of those that came for them.
    """
    if table.is_append_only:
        report(f"the files of {table.uri} stay as they are: it has delta.appendOnly set")
        return 0, 0
    went = came = 0
    for key in table.partitions():
        partition = dict(zip(table.partition_columns, key, strict=True))
        groups = [group for group in _groups(table.files(partition), target_bytes) if len(group) > 1]
        if not groups:
            continue
        gone = [file for group in groups for file in group]
        try:
            table.check_replaceable(partition)
            area = table.staging_area(partition)
            staged = [file for group in groups for file in stage(table.read_files(group), area)]
            table.rearrange(partition, staged, gone)
        except BatchAssetsError as error:  # this partition stays as it is; that is no reason to leave the others
            report(f"left as it is: {error}")
            continue
        went, came = went + len(gone), came + len(staged)
    return went, came


def _remove_old_checkpoints(table: Snapshot) -> None:
    """Remove checkpoints of more than an hour ago but for the newest: each names every file of the table again.

    Nothing is removed where the log has lost its beginning: there, older versions rest on older checkpoints.
    """
    files = file_system(table.uri, table.storage_options)
    log = {info.path.rsplit("/", 1)[-1]: info for info in files.get_file_info(pafs.FileSelector("_delta_log"))}
    checkpoints = {name: info for name, info in log.items() if re.match(r"\d{20}\.checkpoint\b.*\.parquet$", name)}
    if f"{0:020d}.json" not in log or not checkpoints:
        return
    newest = max(checkpoints)[:20]
    before = datetime.now(UTC) - timedelta(hours=_CHECKPOINT_HOURS)
    for name, info in checkpoints.items():
        if name[:20] != newest and info.mtime < before:
            with suppress(FileNotFoundError):  # somebody else is at it
                files.delete_file(info.path)


def _groups(files: Sequence[DataFile], target_bytes: int) -> Iterator[list[DataFile]]:
    """Files below the half of the target, in groups of about the target."""
    group: list[DataFile] = []
    for file in sorted(files, key=lambda file: file.size):
        if file.size > target_bytes // 2:
            break
        if sum(member.size for member in group) + file.size > target_bytes:
            yield group
            group = []
        group.append(file)
    yield group
