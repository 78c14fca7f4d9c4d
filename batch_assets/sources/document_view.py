"""The documents in a Delta table of another writer, read in place: its columns mapped, its rows in batches.

A view looks like a table with the columns of a pipeline's documents that is partitioned by batch. Nothing is copied,
and nothing is ever written to the table.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.commit_log import Commit, Partition, author_of, log_entries
from batch_assets.lake.contracts import PARTITION, Table
from batch_assets.lake.snapshot import DataFile, Scan, Snapshot
from batch_assets.lake.storage import file_system
from batch_assets.lake.writable_table import WritableTable
from batch_assets.sources.batch_keys import BatchColumn
from batch_assets.sources.batching import Batching
from batch_assets.sources.column_mapping import ColumnMapping
from batch_assets.text_template import as_text


@dataclass(frozen=True)
class Conversion:
    """Turns rows of the table into documents, on the workers.

    ``batch`` is the key of the batch, and ``column`` tells which rows are in it; None keeps all rows. ``hashed`` means
    that ids are derived from the content. ``called`` is what messages call the table.
    """

    columns: ColumnMapping
    schema: pa.Schema
    contract: Table
    batch: str
    column: BatchColumn | None
    hashed: bool
    called: str

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
                found[column.name] = self._copied(rows.column(column.copied_from), kind, column.copied_from)
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

    def _copied(self, values: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
        """The values of a column in the type that they have in the output, which keeps the first type it got.

        Raises:
            BatchAssetsError: a value can't be kept as it is.
        """
        if values.type == kind:
            return values
        if pa.types.is_string(kind):
            return pa.array([_plain(value) for value in values.to_pylist()], pa.string())
        try:
            kept = values.cast(kind)
            # As text, because NaN is not equal to itself.
            is_same = kept.cast(values.type).cast(pa.string()).equals(values.cast(pa.string()))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            is_same = False
        if not is_same:
            raise BatchAssetsError(
                f"column {name} of {self.called} was {kind} when this pipeline was set up, and is {values.type} now, "
                f"with values that don't fit: change it back, or "
                f"start afresh with 'batch-assets reset {self.contract.owner}'"
            )
        return kept


def _texts(
    rows: pa.RecordBatch, columns: Sequence[str], render: Callable[[Mapping[str, Any]], str | None]
) -> list[str | None]:
    values = {}
    for name in columns:
        column = rows.column(name)
        values[name] = [_plain(value) for value in column.to_pylist()]
    return [render(dict(zip(columns, row, strict=True))) for row in zip(*values.values(), strict=True)]


def _plain(value: Any) -> str | None:
    return json.dumps(value, default=str, ensure_ascii=False) if isinstance(value, dict | list) else as_text(value)


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

    @property
    def began(self) -> tuple[str, int] | None:
        """The id and the version of the table from which its commits are batches, if they are."""
        return self._batching.began

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
        conversion = Conversion(
            self._columns, self.schema, self.contract, partition[PARTITION], column, self._hashed, self._called
        )
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

    def rows_without_batch(self, answers: Mapping[str, int]) -> int:
        """The number of rows whose commits the log lost before they were scored.

        It is negative if rows were removed by a commit that the log lost.

        Args:
            answers: the number of rows that were scored of each batch.
        """
        if not self._batching.has_lost_commits():
            return 0
        batches = self._batching.files()
        kept = {key: rows for key, rows in answers.items() if key not in batches and not self._batching.is_gone(key)}
        return self._stored.rows() - self.rows() - sum(kept.values())

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
