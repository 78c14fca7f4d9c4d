"""The documents in a Delta table of another writer, read in place: its columns mapped, its rows in batches.

A view looks like a table with the columns of a pipeline's documents that is partitioned by batch. Nothing is copied,
and nothing is ever written to the table.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.commit_log import Commit, Partition, author_of, log_entries
from batch_assets.lake.contracts import PARTITION, Table
from batch_assets.lake.partition_values import from_log
from batch_assets.lake.snapshot import DataFile, Scan, Snapshot
from batch_assets.lake.storage import file_system
from batch_assets.lake.writable_table import WritableTable
from batch_assets.sources.batch_keys import BatchColumn
from batch_assets.sources.column_mapping import ColumnMapping
from batch_assets.text import texts_of
from batch_assets.text_template import as_text

# The longest texts in statistics are cut: https://github.com/delta-io/delta/blob/master/PROTOCOL.md#per-file-statistics
_WHOLE_IN_STATISTICS = 32
# Files whose batches are remembered in this process.
_MOST_REMEMBERED = 200_000

# The batches of data files, which never change: rows by key. A file that a commit removed may be gone.
_remembered: dict[tuple[object, ...], Mapping[str, int]] = {}


class Batching(ABC):
    """How the rows of a table are split into batches."""

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
        ranges = self._ranges()
        for file in self._stored.files():
            for key, rows in self._batches_in(file, ranges.get(file.log_path)).items():
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
            if not values:
                return None
            return {self._column.key(from_log({name: values.get(name)}, stored.schema)[name])}
        known = _remembered.get(self._place(change["path"]))
        if known is not None:
            return set(known)
        live = self._live.get(change["path"])
        if live is not None:
            return set(self._batches_in(live, self._ranges().get(live.log_path)))
        values = from_log(
            {column: (change.get("partitionValues") or {}).get(column) for column in stored.partition_columns},
            stored.schema,
        )
        gone = DataFile(change["path"], change.get("size") or 0, tuple(values.values()), None)
        try:
            return set(self._read(gone))
        except FileNotFoundError:
            return None

    @cached_property
    def _live(self) -> dict[str, DataFile]:
        return {file.log_path: file for file in self._stored.files()}

    def _place(self, log_path: str) -> tuple[object, ...]:
        return self._stored.table_id, self._column, log_path

    def _batches_in(self, file: DataFile, only: str | None) -> Mapping[str, int]:
        """The batches in a file, with their rows; ``only`` is the one that its statistics name."""
        if self._column.name in self._stored.partition_columns:
            value = file.partition[self._stored.partition_columns.index(self._column.name)]
            return {self._column.key(value): self._stored.count([file])}
        if only is not None and file.rows is not None:
            return {only: file.rows}
        return self._read(file)

    def _read(self, file: DataFile) -> Mapping[str, int]:
        place = self._place(file.log_path)
        if place not in _remembered:
            counts: Counter[str] = Counter()
            for rows in self._stored.read_files([file], [self._column.name]):
                for found in pc.value_counts(self._column.keys(rows.column(0)).dictionary_decode()).to_pylist():
                    counts[found["values"]] += found["counts"]
            if len(_remembered) >= _MOST_REMEMBERED:
                _remembered.clear()
            _remembered[place] = counts
        return _remembered[place]

    def _ranges(self) -> dict[str, str]:
        """The files whose statistics say that all their rows are in one batch, with its key."""
        return self._single

    @cached_property
    def _single(self) -> dict[str, str]:
        name = self._column.name
        if name in self._stored.partition_columns:
            return {}
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
        self._began = began
        self._rows = rows
        self._most = most

    @property
    def column(self) -> BatchColumn | None:
        """None: a file has the rows of one batch."""
        return None

    def changed(self, actions: Sequence[Mapping[str, Any]], version: int) -> set[str] | None:
        """The batches that a version appended."""
        if version == self._began[1]:
            return set(self._first)
        key = _version_key(version)
        return {key} if key in self._files else set()

    def files(self) -> Mapping[str, Mapping[DataFile, int]]:
        """The files of each batch, with their rows."""
        return self._files

    def is_gone(self, key: str) -> bool:
        """Whether the batch is from before the pipeline started again; entries that the log lost keep their batches."""
        found = re.match(r"version-(\d+)", key)
        return found is None or not self._began[1] <= int(found[1]) <= self._stored.version

    @cached_property
    def _first(self) -> dict[str, dict[DataFile, int]]:
        """The batches of the version at which the pipeline first saw the table: its files, in groups.

        Nothing if the log no longer reaches back to that version: their answers are kept.
        """
        began = self._began[1]
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
        table_id, began = self._began
        stored = self._stored
        if table_id != stored.table_id or began > stored.version:
            raise self._stop("was created again")
        found = dict(self._first)
        # Older entries may have been cleaned up: the answers to their batches are kept.
        for version, actions in reversed(list(log_entries(stored.uri, stored.storage_options, stored.version, began))):
            if any("remove" in action and action["remove"].get("dataChange", True) for action in actions):
                raise self._stop(f"lost or changed rows in version {version}")
            added = [self._added(a["add"]) for a in actions if "add" in a and a["add"].get("dataChange", True)]
            if added:
                found[_version_key(version)] = {file: stored.count([file]) for file in added}
        if len(found) > self._most:
            raise BatchAssetsError(
                f"{self._called} has {len(found)} commits, more than {self._most} batches: batch by a column, or raise "
                "source.max_batches"
            )
        return found

    def _added(self, add: Mapping[str, Any]) -> DataFile:
        values = from_log(
            {column: (add.get("partitionValues") or {}).get(column) for column in self._stored.partition_columns},
            self._stored.schema,
        )
        statistics = json.loads(add.get("stats") or "{}")
        return DataFile(add["path"], add["size"], tuple(values.values()), statistics.get("numRecords"))

    def _stop(self, what: str) -> BatchAssetsError:
        return BatchAssetsError(
            f"{self._called} {what}, but source.batch_by is commit, which is for tables that only grow: start again "
            f"from its current rows with 'batch-assets rebase {self._pipeline}', or batch by a column"
        )


def _version_key(version: int) -> str:
    return f"version-{version:08d}"


@dataclass(frozen=True)
class Conversion:
    """Turns rows of the table into documents, on the workers.

    ``batch`` is the key of the batch, and ``column`` tells which rows are in it; None keeps all rows. ``hashed`` means
    that ids are derived from the content.
    """

    columns: ColumnMapping
    schema: pa.Schema
    contract: Table
    batch: str
    column: BatchColumn | None
    hashed: bool

    def __call__(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The documents in some rows."""
        if self.column is not None:
            keys = self.column.keys(rows.column(self.column.name))
            rows = rows.filter(pc.equal(keys.dictionary_decode(), self.batch))
        texts = _texts(rows, self.columns.template.columns, self.columns.template.render)
        references: list[str | None] = [None] * rows.num_rows
        reference = self.columns.reference
        if reference is not None and reference in rows.schema.names:
            references = _texts(rows, [reference], lambda row: row[reference])
        found: dict[str, pa.Array] = {
            PARTITION: pa.repeat(pa.scalar(self.batch), rows.num_rows),
            self.contract.reference_column: pa.array(references, pa.string()),
        }
        for column in self.contract.columns:
            if column.copied_from is not None and column.copied_from in rows.schema.names:
                kind = self.schema.field(column.name).type
                found[column.name] = _copied(rows.column(column.copied_from), kind)
        if self.hashed:
            copied = [found[name].to_pylist() for name in self.columns.carry]
            content = zip(texts, references, *copied, strict=True)
            found["id"] = pa.array([_digest(values) for values in content], pa.string())
        elif found["id"].null_count:
            # Without an id, the row could not be told from others: it makes no request.
            texts = [
                None if is_null else text
                for text, is_null in zip(texts, found["id"].is_null().to_pylist(), strict=True)
            ]
        found["document"] = pa.array(texts, pa.string())
        return pa.RecordBatch.from_arrays([found[name] for name in self.schema.names], schema=self.schema)


def _texts(
    rows: pa.RecordBatch, columns: Sequence[str], render: Callable[[Mapping[str, Any]], str | None]
) -> list[str | None]:
    values = {}
    for name in columns:
        column = rows.column(name)
        is_text = pa.types.is_string(column.type)
        values[name] = texts_of(column) if is_text else [_plain(value) for value in column.to_pylist()]
    return [render(dict(zip(columns, row, strict=True))) for row in zip(*values.values(), strict=True)]


def _plain(value: Any) -> str | None:
    return json.dumps(value, default=str, ensure_ascii=False) if isinstance(value, dict | list) else as_text(value)


def _copied(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    if pa.types.is_string(kind):
        return pa.array([_plain(value) for value in column.to_pylist()], pa.string())
    return column.cast(kind)


def _digest(values: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:32]


class DocumentView(WritableTable):
    """A table of another writer as the documents of a pipeline.

    Args:
        stored: the table.
        contract: the columns of the documents.
        columns: which columns hold the id, the text and the reference.
        batching: how rows are split into batches.
        called: what messages call the table.
    """

    def __init__(
        self, stored: Snapshot, contract: Table, columns: ColumnMapping, batching: Batching, called: str
    ) -> None:
        self.uri = stored.uri
        self.storage_options = stored.storage_options
        self.version = stored.version
        self.partition_columns = [PARTITION]
        self._tail = _log_tail(stored)
        self._stored = stored
        self._columns = columns
        self._batching = batching
        self._called = called
        self._hashed = columns.id == ColumnMapping.id and columns.id not in stored.schema.names
        _check_columns(stored.schema, columns, called, hashed=self._hashed)
        self.contract = contract
        self.schema = contract.arrow_schema

    @property
    def table_id(self) -> str:
        """The id of the table."""
        return self._stored.table_id

    def is_newest(self) -> bool:
        """Whether nothing was committed since the table was opened; looks only at the end of its log."""
        return self._tail == _log_tail(self._stored)

    def partitions(self) -> list[Partition]:
        """The batches."""
        return [(key,) for key in self._batching.files()]

    def files(self, partition: Mapping[str, Any] | None = None) -> list[DataFile]:
        """The files with rows of a batch, or of any batch."""
        return list(self._rows_by_file(partition))

    def rows(self, partition: Mapping[str, Any] | None = None) -> int:
        """The number of rows of a batch, or of all batches."""
        if partition is None:
            return sum(sum(files.values()) for files in self._batching.files().values())
        return sum(self._rows_by_file(partition).values())

    def _rows_by_file(self, partition: Mapping[str, Any] | None) -> Mapping[DataFile, int]:
        batches = self._batching.files()
        if partition is None:
            return {file: rows for files in batches.values() for file, rows in files.items()}
        return batches.get(partition[PARTITION], {})

    def scan(self, partition: Mapping[str, Any] | None = None) -> Scan:
        """How to read the documents of one batch."""
        assert partition is not None, "a view is read batch by batch"
        column = self._batching.column
        names = {name for name in self._columns.names if name in self._stored.schema.names}
        if column is not None:
            names.add(column.name)
        schema = pa.schema([field for field in self._stored.schema if field.name in names])
        conversion = Conversion(self._columns, self.schema, self.contract, partition[PARTITION], column, self._hashed)
        return Scan(self._stored, self.files(partition), schema, conversion, "id" if self._hashed else None)

    def read(self, partition: Mapping[str, Any], columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the documents of one batch; ids that are derived from equal rows are equal."""
        scan = self.scan(partition)
        assert scan.convert is not None
        for rows in self._stored.read_files(scan.files, scan.schema.names):
            yield scan.convert(rows).select(list(columns or self.schema.names))

    def commits(self, after: int = -1) -> Iterator[Commit]:
        """Yield the commits to the table, with the batches that they changed."""
        for version, actions in log_entries(self.uri, self.storage_options, self.version, after):
            info: dict[str, Any] = next((a["commitInfo"] for a in actions if "commitInfo" in a), {})
            keys = self._batching.changed(actions, version)
            changed = frozenset((key,) for key in keys or ())
            yield Commit(
                version, {}, author_of(info), changed, changed, keys is None, (info.get("timestamp") or 0) / 1000
            )

    def may_have_had(self, batch: str) -> bool:
        """Whether the answers to a batch that the table doesn't have must go."""
        return self._batching.is_gone(batch)

    def follows(self, earlier: Snapshot) -> bool:
        """Whether this is the same table as an earlier view's, and not older."""
        return isinstance(earlier, DocumentView) and self._stored.follows(earlier._stored)

    def column_metadata(self, column: str) -> Mapping[str, Any]:
        """Nothing: the table belongs to another writer."""
        return {}

    def check_replaceable(self, partition: Mapping[str, Any]) -> None:
        """Refuse to write.

        Raises:
            BatchAssetsError: always.
        """
        raise BatchAssetsError(f"{self._called} is read in place and never written")

    def _newest(self) -> Self:
        raise BatchAssetsError(f"{self._called} is read in place and never written")


def _log_tail(stored: Snapshot) -> list[tuple[int, int | None, int | None]]:
    """Type, size and time of the newest log entry, and of the next one, which does not exist yet."""
    paths = [f"_delta_log/{version:020d}.json" for version in (stored.version, stored.version + 1)]
    found = file_system(stored.uri, stored.storage_options).get_file_info(paths)
    return [(info.type.value, info.size, info.mtime_ns) for info in found]


def _check_columns(schema: pa.Schema, columns: ColumnMapping, called: str, *, hashed: bool) -> None:
    places = {"columns.text": columns.template.columns, "columns.carry": columns.carry}
    # A table to score needs no references: the documents that models are evaluated on have them.
    places["columns.id"] = [] if hashed else [columns.id]
    for place, names in places.items():
        for name in names:
            if name not in schema.names:
                raise BatchAssetsError(
                    f"column {name} not found in {called} (columns: {', '.join(schema.names)}): map it with {place}"
                )
    for name in columns.template.columns:
        if pa.types.is_binary(schema.field(name).type):
            raise BatchAssetsError(f"column {name} of {called} is binary: use a column of text in columns.text")
