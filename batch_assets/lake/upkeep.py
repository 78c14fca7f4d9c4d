"""Upkeep of Delta tables: compact small files partition by partition, write checkpoints, vacuum.

delta-rs's own ``optimize.compact`` is not used: two concurrent compactions rewrite the same rows, and both copies stay.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow.fs as pafs

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.snapshot import DataFile
from batch_assets.lake.staging import stage
from batch_assets.lake.storage import file_system
from batch_assets.lake.writable_table import WritableTable

TARGET_BYTES = 128 * 1024 * 1024
# Readers open a checkpoint within seconds of finding it; older versions can be read from the commits.
_CHECKPOINT_HOURS = 1


@dataclass(frozen=True)
class Upkeep:
    """Result of upkeep of a table: files compacted, files they became, files vacuumed."""

    compacted: int
    became: int
    vacuumed: int


def maintain(
    table: WritableTable, retention_hours: int, report: Callable[[str], None], target_bytes: int = TARGET_BYTES
) -> Upkeep:
    """Compact a table's partitions, write a checkpoint, and remove old checkpoints and unneeded files.

    Args:
        table: the table, at its newest version.
        retention_hours: keep files younger than this, for readers of older versions and for runs that have not
            committed their files yet. It must be longer than the longest run.
        report: called with a message for everything that was skipped.
        target_bytes: target size of compacted files.

    Raises:
        BatchAssetsError: the table uses features that this package can't write.
    """
    table.check_writable()
    compacted, became = compact(table, report, target_bytes)
    table.checkpoint()
    _remove_old_checkpoints(table)
    return Upkeep(compacted, became, len(table.vacuum(retention_hours)))


def compact(table: WritableTable, report: Callable[[str], None], target_bytes: int = TARGET_BYTES) -> tuple[int, int]:
    """Compact the small files of each partition, with one commit per partition.

    A partition is skipped if another writer changes it in the meantime, or if it can't be written.

    Returns:
        The number of files removed, and the number of files added.
    """
    if table.is_append_only:
        report(f"skipped the compaction of {table.uri}: the table is append-only (delta.appendOnly)")
        return 0, 0
    removed = added = 0
    for key in table.partitions():
        partition = dict(zip(table.partition_columns, key, strict=True))
        groups = [group for group in _groups(table.files(partition), target_bytes) if len(group) > 1]
        if not groups:
            continue
        old_files = [file for group in groups for file in group]
        try:
            table.check_replaceable(partition)
            area = table.staging_area(partition)
            staged = [file for group in groups for file in stage(table.read_files(group), area)]
            table.rearrange(partition, staged, old_files)
        except BatchAssetsError as error:  # one failing partition must not stop the others
            report(f"skipped a partition: {error}")
            continue
        removed, added = removed + len(old_files), added + len(staged)
    return removed, added


def _remove_old_checkpoints(table: WritableTable) -> None:
    """Remove checkpoints older than an hour, except the newest; each one lists every file of the table.

    Nothing is removed if the first log entries are gone: older versions then depend on older checkpoints.
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
            with suppress(FileNotFoundError):  # another upkeep removed it first
                files.delete_file(info.path)


def _groups(files: Sequence[DataFile], target_bytes: int) -> Iterator[list[DataFile]]:
    """Group the files smaller than half the target size; each group adds up to about the target size."""
    group: list[DataFile] = []
    for file in sorted(files, key=lambda file: file.size):
        if file.size > target_bytes // 2:
            break
        if sum(member.size for member in group) + file.size > target_bytes:
            yield group
            group = []
        group.append(file)
    yield group
