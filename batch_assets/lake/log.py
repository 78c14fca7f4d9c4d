"""The commits of a table, read back from its JSON log: what each one changed, and what was recorded in it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from batch_assets.lake.partitions import from_log
from batch_assets.lake.storage import file_system

# What this package records in a commit carries this prefix.
METADATA_PREFIX = "batch_assets."

# Recorded by commits that only rearrange rows, whatever their actions say.
REARRANGED = "rearranged"

Partition = tuple[Any, ...]
"""Values of the partition columns, in their order."""


@dataclass(frozen=True)
class Commit:
    """A version of a table.

    ``metadata`` is what this package recorded in it, empty if another writer made it; ``author`` names who did.
    ``touched`` are the partitions whose files it added or removed, ``changed`` those of them whose rows it changed;
    with ``unknown_partitions`` there are others, because some writers remove a file without naming its partition.
    ``seconds`` is when it was made, since 1970, by its writer's clock.
    """

    version: int
    metadata: Mapping[str, Any]
    author: str = "another writer"
    changed: frozenset[Partition] = frozenset()
    touched: frozenset[Partition] = frozenset()
    unknown_partitions: bool = False
    seconds: float = 0.0

    def may_touch(self, partition: Partition) -> bool:
        """Whether the commit may have added or removed files of a partition."""
        return self.unknown_partitions or partition in self.touched


def commits(
    uri: str,
    storage_options: Mapping[str, str],
    schema: pa.Schema,
    partition_columns: list[str],
    newest: int,
    after: int = -1,
) -> Iterator[Commit]:
    """Yield commits from the newest to the oldest whose log entry is still there.

    Args:
        uri: root of the table.
        storage_options: as in delta-rs.
        schema: columns of the table.
        partition_columns: those of them that it is partitioned by.
        newest: version to begin with.
        after: version to end before.
    """
    files = file_system(uri, storage_options)
    for version in range(newest, after, -1):
        try:
            with files.open_input_stream(f"_delta_log/{version:020d}.json") as stream:
                # Not splitlines(): a value in the log may hold what Unicode, unlike JSON, takes for a line's end.
                lines = stream.read().decode().split("\n")
        except FileNotFoundError:
            return  # older commits live in a checkpoint and have been cleaned up
        actions = [json.loads(line) for line in lines if line.strip()]
        info: dict[str, Any] = next((a["commitInfo"] for a in actions if "commitInfo" in a), {})
        metadata = {
            key.removeprefix(METADATA_PREFIX): value for key, value in info.items() if key.startswith(METADATA_PREFIX)
        }
        touched: set[Partition] = set()
        changed: set[Partition] = set()
        unknown_partitions = False
        # A replacement of an empty partition by nothing changes no file, but it is on record.
        if "partition" in metadata:
            changed.add(_key(metadata["partition"], schema, partition_columns))
        for change in (action.get("add") or action.get("remove") for action in actions):
            if change is None:
                continue
            if partition_columns and not change.get("partitionValues"):
                unknown_partitions = True
                continue
            key = _key(change.get("partitionValues") or {}, schema, partition_columns)
            touched.add(key)
            if change.get("dataChange", True) and REARRANGED not in metadata:
                changed.add(key)
        yield Commit(
            version,
            metadata,
            _author(info),
            frozenset(changed),
            frozenset(touched | changed),
            unknown_partitions,
            info.get("timestamp", 0) / 1000,
        )


def _author(info: Mapping[str, Any]) -> str:
    """Who made a commit, as far as its ``commitInfo`` says; its fields are every writer's own choice."""
    if f"{METADATA_PREFIX}run_id" in info:
        return f"run {info[f'{METADATA_PREFIX}run_id']}"
    known = [info.get("engineInfo") or info.get("clientVersion"), info.get("operation")]
    if isinstance(info.get("timestamp"), int):
        known.append(datetime.fromtimestamp(info["timestamp"] / 1000, UTC).isoformat(" ", "seconds"))
    named = [str(part) for part in known if part]
    return f"another writer ({', '.join(named)})" if named else "another writer"


def _key(values: Mapping[str, str | None], schema: pa.Schema, partition_columns: list[str]) -> Partition:
    given = from_log({column: values.get(column) for column in partition_columns}, schema)
    return tuple(given[column] for column in partition_columns)
