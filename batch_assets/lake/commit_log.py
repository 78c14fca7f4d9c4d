"""Read a table's commits from its JSON log: what each one changed, and the metadata recorded in it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from batch_assets.lake.partition_values import from_log
from batch_assets.lake.storage import file_system

# Prefix of the metadata that this package records in a commit.
METADATA_PREFIX = "batch_assets."

# Recorded in commits that only rearrange rows, although their actions claim to change data.
REARRANGED = "rearranged"

LOG_FOLDER = "_delta_log"

Partition = tuple[Any, ...]
"""Values of the partition columns, in order."""


@dataclass(frozen=True)
class Commit:
    """One version of a table.

    ``metadata`` is what this package recorded, empty for a commit by another writer; ``author`` names the writer.
    ``touched`` are the partitions with added or removed files; ``changed`` are those whose rows changed.
    ``unknown_partitions`` means that there may be more, because some writers remove a file without naming its
    partition. ``seconds`` is the time of the commit by its writer's clock, since 1970. ``is_lost`` means that the log
    no longer has the commit; ``version`` is then the oldest one that it has.
    """

    version: int
    metadata: Mapping[str, Any]
    author: str = "another writer"
    changed: frozenset[Partition] = frozenset()
    touched: frozenset[Partition] = frozenset()
    unknown_partitions: bool = False
    seconds: float = 0.0
    is_lost: bool = False

    def may_touch(self, partition: Partition) -> bool:
        """Return whether the commit may have added or removed files of a partition."""
        return self.unknown_partitions or partition in self.touched


def read_commit(files: pafs.FileSystem, version: int) -> list[dict[str, Any]] | None:
    """Return the actions of a commit, None if its log entry has been cleaned up.

    Args:
        files: file system rooted at the table.
        version: version of the commit.
    """
    try:
        with files.open_input_stream(f"{LOG_FOLDER}/{version:020d}.json") as stream:
            return parse_actions(stream.read())
    except FileNotFoundError:
        return None


def parse_actions(data: bytes) -> list[dict[str, Any]]:
    """Parse actions, one in each line."""
    # Not splitlines(): it also splits at Unicode line separators, which a JSON value may contain.
    return [json.loads(line) for line in data.decode().split("\n") if line.strip()]


def commits(
    uri: str,
    storage_options: Mapping[str, str],
    schema: pa.Schema,
    partition_columns: Mapping[str, str],
    newest: int,
    after: int = -1,
) -> Iterator[Commit]:
    """Yield commits from newest to oldest, as far back as the log has entries.

    Args:
        uri: root of the table.
        storage_options: as in delta-rs.
        schema: columns of the table.
        partition_columns: names of its partition columns, each with its name in the log.
        newest: first version to yield.
        after: yield only versions after this one.
    """
    for version, actions in log_entries(uri, storage_options, newest, after):
        info: dict[str, Any] = next((a["commitInfo"] for a in actions if "commitInfo" in a), {})
        metadata = {
            key.removeprefix(METADATA_PREFIX): value for key, value in info.items() if key.startswith(METADATA_PREFIX)
        }
        touched: set[Partition] = set()
        changed: set[Partition] = set()
        unknown_partitions = False
        # Emptying an empty partition changes no file; only the metadata records it.
        if "partition" in metadata:
            changed.add(logged_partition(metadata["partition"], schema, partition_columns))
        for change in (action.get("add") or action.get("remove") for action in actions):
            if change is None:
                continue
            if partition_columns and not change.get("partitionValues"):
                unknown_partitions = True
                continue
            key = logged_partition(change.get("partitionValues") or {}, schema, partition_columns)
            touched.add(key)
            if change.get("dataChange", True) and REARRANGED not in metadata:
                changed.add(key)
        yield Commit(
            version,
            metadata,
            author_of(info),
            frozenset(changed),
            frozenset(touched | changed),
            unknown_partitions,
            info.get("timestamp", 0) / 1000,
        )


def log_entries(
    uri: str, storage_options: Mapping[str, str], newest: int, after: int = -1
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield versions with their actions from newest to oldest, as far back as the log has entries.

    Args:
        uri: root of the table.
        storage_options: as in delta-rs.
        newest: first version to yield.
        after: yield only versions after this one.
    """
    files = file_system(uri, storage_options)
    for version in range(newest, after, -1):
        actions = read_commit(files, version)
        if actions is None:
            return  # older log entries have been cleaned up after a checkpoint
        yield version, actions


def author_of(info: Mapping[str, Any]) -> str:
    """Describe a commit's writer from ``commitInfo``, whose fields each writer chooses."""
    if f"{METADATA_PREFIX}run_id" in info:
        return f"run {info[f'{METADATA_PREFIX}run_id']}"
    known = [info.get("engineInfo") or info.get("clientVersion"), info.get("operation")]
    if isinstance(info.get("timestamp"), int):
        known.append(datetime.fromtimestamp(info["timestamp"] / 1000, UTC).isoformat(" ", "seconds"))
    details = [str(part) for part in known if part]
    return f"another writer ({', '.join(details)})" if details else "another writer"


def logged_partition(
    values: Mapping[str, str | None], schema: pa.Schema, partition_columns: Mapping[str, str]
) -> Partition:
    """The typed values of the partition columns, given by their names in the log."""
    given = from_log({column: values.get(name) for column, name in partition_columns.items()}, schema)
    return tuple(given[column] for column in partition_columns)
