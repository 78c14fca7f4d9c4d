"""How the rows of a table of another writer are split into batches: by the values of a column, or by commit."""

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pyarrow.compute as pc

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.commit_log import Partition, log_entries, read_commit
from batch_assets.lake.snapshot import DataFile, Snapshot
from batch_assets.lake.storage import file_system
from batch_assets.sources.batch_keys import BatchColumn

# The longest texts in statistics are cut: https://github.com/delta-io/delta/blob/master/PROTOCOL.md#per-file-statistics
_WHOLE_IN_STATISTICS = 32
# Files whose batches are remembered in this process.
_MOST_REMEMBERED = 200_000
# Log entries that are read at the same time: in a bucket, each takes about 20 ms.
_READERS = 16

# The batches of data files, which never change: rows by key. A file that a commit removed may be gone.
_remembered: dict[tuple[object, ...], Mapping[str, int]] = {}
# The same for commits, which never change either, by table and version; None for those that the log lost.
_remembered_commits: dict[tuple[str, str], "dict[int, _Appended | None]"] = {}


class Batching(ABC):
    """How the rows of a table are split into batches.

    ``began`` is the id and the version of the table from which its commits are batches, if they are.
    """

    began: tuple[str, int] | None = None

    @abstractmethod
    def files(self) -> Mapping[str, Mapping[DataFile, int]]:
        """The files of each batch, with the number of its rows in each."""

    @abstractmethod
    def changed(self, actions: Sequence[Mapping[str, Any]], version: int) -> set[str] | None:
        """The batches whose rows a commit may have changed; None if that can't be found out."""

    @abstractmethod
    def is_gone(self, key: str) -> bool:
        """Whether a batch that has no files is not in the table any more."""

    @property
    @abstractmethod
    def column(self) -> BatchColumn | None:
        """The column that tells the batch of a row; None if all rows of a file are in its batch."""

    def has_lost_commits(self) -> bool:
        """Whether the log no longer has commits that were batches."""
        return False


class ColumnBatching(Batching):
    """The values of a column are the batches.

    A commit that adds or removes files makes the batches in them stale, a rearrangement of rows does not.
    """

    def __init__(self, stored: Snapshot, column: BatchColumn, called: str, most: int) -> None:
        column.check(stored.schema, called)
        self._stored = stored
        self._column = column
        self._called = called
        self._most = most

    @property
    def column(self) -> BatchColumn | None:
        """The column."""
        return self._column

    @cached_property
    def _files(self) -> dict[str, dict[DataFile, int]]:
        found: dict[str, dict[DataFile, int]] = {}
        for file in self._stored.files():
            for key, rows in self._batches_in(file).items():
                found.setdefault(key, {})[file] = rows
            if len(found) > self._most:
                raise BatchAssetsError(
                    f"{self._column.name} of {self._called} makes more than {self._most} batches: batch by another "
                    "column, or raise source.max_batches"
                )
        return found

    def files(self) -> Mapping[str, Mapping[DataFile, int]]:
        """The files of each batch, with the number of its rows in each."""
        return self._files

    def changed(self, actions: Sequence[Mapping[str, Any]], version: int) -> set[str] | None:
        """The batches in the files that a commit added or removed."""
        keys: set[str] = set()
        for action in actions:
            change = action.get("add") or action.get("remove")
            if change is None or not change.get("dataChange", True):
                continue
            found = self._keys_of(change)
            if found is None:
                return None
            keys |= found
        return keys

    def is_gone(self, key: str) -> bool:
        """Always: the files have all batches."""
        return True

    def _keys_of(self, change: Mapping[str, Any]) -> set[str] | None:
        """The batches in a file that the log names."""
        stored, name = self._stored, self._column.name
        if name in stored.partition_columns:
            values = change.get("partitionValues")
            return {self._partition_key(stored.logged_partition(values))} if values else None
        only = self._only_batches.get(change["path"])
        if only is not None:
            return {only}
        try:
            # A commit that only adds a deletion vector changes the batches of the rows that are deleted now.
            return set(self._read(_data_file(stored, change), with_deleted=True))
        except FileNotFoundError:  # it was vacuumed
            return None

    def _partition_key(self, partition: Partition) -> str:
        return self._column.key(partition[self._stored.partition_columns.index(self._column.name)])

    def _batches_in(self, file: DataFile) -> Mapping[str, int]:
        """The batches in a file, with their rows."""
        if self._column.name in self._stored.partition_columns:
            return {self._partition_key(file.partition): self._stored.count([file])}
        only = self._only_batches.get(file.log_path)
        return self._read(file) if only is None else {only: self._stored.count([file])}

    def _read(self, file: DataFile, *, with_deleted: bool = False) -> Mapping[str, int]:
        vector = None if with_deleted else self._stored.deletion_vectors.get(file.log_path)
        place = (self._stored.table_id, self._column, file.log_path, vector)
        if place not in _remembered:
            counts: Counter[str] = Counter()
            for rows in self._stored.read_files([file], [self._column.name], with_deleted=with_deleted):
                for found in pc.value_counts(self._column.keys(rows.column(0)).dictionary_decode()).to_pylist():
                    counts[found["values"]] += found["counts"]
            if len(_remembered) >= _MOST_REMEMBERED:
                _remembered.clear()
            _remembered[place] = counts
        return _remembered[place]

    @cached_property
    def _only_batches(self) -> dict[str, str]:
        """The files whose statistics say that all their rows are in one batch, with its key."""
        name = self._column.name
        columns = [f"min.{name}", f"max.{name}", f"null_count.{name}"]
        actions = self._stored.add_actions()
        if not {*columns} <= {*actions.column_names}:
            return {}
        found = {}
        for action in actions.select(["path", *columns]).to_pylist():
            low, high, nulls = (action[column] for column in columns)
            if low is None or high is None or nulls != 0:
                continue
            if isinstance(low, str) and len(low.encode()) >= _WHOLE_IN_STATISTICS:
                continue
            if self._column.key(low) == self._column.key(high):
                found[action["path"]] = self._column.key(low)
        return found


class CommitBatching(Batching):
    """What one commit appended is one batch, and the rows that were there before form the first ones.

    Args:
        stored: the table.
        called: what messages call it.
        pipeline: the pipeline that reads it.
        began: id and version of the table when the pipeline first saw it.
        rows: maximum number of rows of a batch of the first version, unless a single file has more.
        most: maximum number of batches.
    """

    def __init__(
        self, stored: Snapshot, called: str, pipeline: str, began: tuple[str, int], rows: int, most: int
    ) -> None:
        self._stored = stored
        self._called = called
        self._pipeline = pipeline
        self.began: tuple[str, int] = began
        self._rows = rows
        self._most = most

    @property
    def column(self) -> BatchColumn | None:
        """None: a file has the rows of one batch."""
        return None

    def changed(self, actions: Sequence[Mapping[str, Any]], version: int) -> set[str] | None:
        """The batches that a version appended."""
        if version == self.began[1]:
            return set(self._first)
        key = _version_key(version)
        return {key} if key in self._files else set()

    def files(self) -> Mapping[str, Mapping[DataFile, int]]:
        """The files of each batch, with their rows."""
        return self._files

    def is_gone(self, key: str) -> bool:
        """Whether the batch is from before the pipeline started again; entries that the log lost keep their batches."""
        found = re.match(r"version-(\d+)", key)
        if found is None or not self.began[1] <= int(found[1]) <= self._stored.version:
            return True
        # Before a rebase, this version may have been a batch with another name.
        return int(found[1]) == self.began[1] and bool(self._first)

    @cached_property
    def _first(self) -> dict[str, dict[DataFile, int]]:
        """The batches of the version at which the pipeline first saw the table: its files, in groups.

        Nothing if the log no longer reaches back to that version: their answers are kept.
        """
        began = self.began[1]
        try:
            first = Snapshot.open(self._stored.uri, self._stored.storage_options, began)
        except BatchAssetsError:
            if any(True for _ in log_entries(self._stored.uri, self._stored.storage_options, began, began - 1)):
                raise
            return {}
        groups: list[dict[DataFile, int]] = []
        room = 0
        for file in sorted(first.files(), key=lambda file: file.log_path):
            rows = first.count([file])
            if rows > room or not groups:
                groups.append({})
                room = self._rows
            groups[-1][file] = rows
            room -= rows
        key = _version_key(began)
        if len(groups) == 1:
            return {key: groups[0]}
        return {f"{key}-{number:04d}": files for number, files in enumerate(groups, 1)}

    @cached_property
    def _files(self) -> dict[str, dict[DataFile, int]]:
        table_id, began = self.began
        stored = self._stored
        if table_id != stored.table_id or began > stored.version:
            raise self._stop("was created again")
        found = dict(self._first)
        for version, appended in self._commits.items():
            if appended.has_removed:
                raise self._stop(f"lost or changed rows in version {version}")
            if appended.files:
                found[_version_key(version)] = dict(appended.files)
        if len(found) > self._most:
            raise BatchAssetsError(
                f"{self._called} has {len(found)} commits, more than {self._most} batches: batch by a column, or raise "
                "source.max_batches"
            )
        return found

    @cached_property
    def _commits(self) -> "dict[int, _Appended]":
        """What each commit appended since the pipeline first saw the table, as far as the log has them."""
        stored = self._stored
        if sum(map(len, _remembered_commits.values())) >= _MOST_REMEMBERED:
            _remembered_commits.clear()
        known = _remembered_commits.setdefault((stored.uri, stored.table_id), {})
        wanted = range(self.began[1] + 1, stored.version + 1)
        files = file_system(stored.uri, stored.storage_options)
        unread = [version for version in wanted if version not in known]
        with ThreadPoolExecutor(_READERS) as readers:
            for version, actions in zip(unread, readers.map(partial(read_commit, files), unread), strict=True):
                known[version] = None if actions is None else self._appended(actions)
        return {version: appended for version in wanted if (appended := known[version]) is not None}

    def _appended(self, actions: Sequence[Mapping[str, Any]]) -> "_Appended":
        has_removed = any("remove" in action and action["remove"].get("dataChange", True) for action in actions)
        adds = [action["add"] for action in actions if "add" in action]
        files = [_data_file(self._stored, add) for add in adds if add.get("dataChange", True)]
        return _Appended(has_removed, {file: self._stored.count([file]) for file in files} if not has_removed else {})

    def has_lost_commits(self) -> bool:
        """Whether the log no longer has the first version, or a commit after it."""
        return not self._first or len(self._commits) < self._stored.version - self.began[1]

    def _stop(self, what: str) -> BatchAssetsError:
        return BatchAssetsError(
            f"{self._called} {what}, but source.batch_by is commit, which is for tables that only grow: start again "
            f"from its current rows with 'batch-assets rebase {self._pipeline}', or batch by a column"
        )


@dataclass(frozen=True)
class _Appended:
    """The data files that a commit appended, with their rows, and whether it also removed rows."""

    has_removed: bool
    files: Mapping[DataFile, int]


def _version_key(version: int) -> str:
    return f"version-{version:08d}"


def _data_file(stored: Snapshot, action: Mapping[str, Any]) -> DataFile:
    """The data file that an action of the log adds or removes."""
    partition = stored.logged_partition(action.get("partitionValues") or {})
    rows = json.loads(action.get("stats") or "{}").get("numRecords")
    return DataFile(action["path"], action.get("size") or 0, partition, rows)
