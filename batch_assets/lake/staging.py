"""Write data files that are not committed yet, with the statistics that their add actions need."""

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.partition_values import check_types, describe, folder, to_log, typed, typed_partition
from batch_assets.lake.statistics import statistics
from batch_assets.lake.storage import file_system

# Rows are buffered up to this size of a row group: small groups compress badly, large ones cost memory.
_ROW_GROUP_BYTES = 64 * 1024 * 1024
# Each open file on an object store buffers a few megabytes.
_MAX_OPEN_FILES = 64

STAGED_FILE_DDL = (
    "path string, size long, rows long, partition string, statistics string, sums string, nested_nulls string, "
    "tally string"
)


@dataclass(frozen=True)
class StagedFile:
    """A data file in the table's folder that is not committed yet.

    ``path`` is relative to the table, and ``size`` is in bytes. ``partition`` is JSON, partition column to value;
    ``statistics`` is the JSON of the Delta protocol. ``sums`` is JSON too, column to the sum of its values, and
    ``nested_nulls`` nested column to its number of nulls, which statistics lack. ``tally`` is a JSON list of pairs:
    values of the tallied columns, and the number of rows that have them.
    """

    path: str
    size: int
    rows: int
    partition: str
    statistics: str
    sums: str
    nested_nulls: str
    tally: str = "[]"

    @property
    def partition_values(self) -> dict[str, str | None]:
        """Partition column to its value, as written in the log."""
        values: dict[str, str | None] = json.loads(self.partition)
        return values

    @property
    def null_counts(self) -> dict[str, int]:
        """Column to its number of nulls."""
        counts: dict[str, int] = json.loads(self.statistics)["nullCount"] | json.loads(self.nested_nulls)
        return counts


@dataclass(frozen=True)
class StagingArea:
    """The table, and optionally the single partition, that files are staged for.

    ``schema`` has all columns. If ``partition`` is set, rows may omit the partition columns. Each file is returned with
    the sums of the integer columns ``summed``, and the number of rows with each combination of values of the columns
    ``tallied``.

    Raises:
        BatchAssetsError: a partition column has an unsupported type.
    """

    uri: str
    storage_options: Mapping[str, str]
    schema: pa.Schema
    partition_columns: Sequence[str]
    partition: Mapping[str, Any] | None = None
    summed: tuple[str, ...] = ()
    tallied: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self.schema, self.partition_columns)

    def only(self, partition: Mapping[str, Any]) -> "StagingArea":
        """Return the staging area of one partition.

        Raises:
            BatchAssetsError: a partition column is missing, unknown, or has a value of the wrong type.
        """
        return replace(self, partition=typed_partition(self.uri, partition, self.schema, self.partition_columns))

    @cached_property
    def file_schema(self) -> pa.Schema:
        """The columns stored in data files: all except the partition columns."""
        return pa.schema([field for field in self.schema if field.name not in self.partition_columns])


class TableWriter:
    """Collects batches of rows into one staged Parquet file per partition."""

    def __init__(self, area: StagingArea) -> None:
        self._area = area
        self._open: dict[tuple[Any, ...], _FileWriter] = {}
        self._staged: list[StagedFile] = []

    def write(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Append rows; their columns may be in any order.

        Raises:
            BatchAssetsError: a column is missing, has the wrong type, or contains nulls although it is required; or a
                row does not belong to the area's partition.
        """
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        for values, part in self._by_partition(table):
            part = _conform(part, self._area.file_schema)
            if part.num_rows == 0:
                continue
            if values not in self._open:
                partition = dict(zip(self._area.partition_columns, values, strict=True))
                self._open[values] = _FileWriter(self._area, partition)
            self._open[values].add(part)
        while sum(file.buffered_bytes for file in self._open.values()) > _ROW_GROUP_BYTES:
            max(self._open.values(), key=lambda file: file.buffered_bytes).flush()
            on_disk = [values for values, file in self._open.items() if file.is_on_disk]
            if len(on_disk) > _MAX_OPEN_FILES:
                self._staged.append(self._open.pop(on_disk[0]).close())

    def close(self) -> list[StagedFile]:
        """Finish the files and return them; an empty list if no row was written."""
        self._staged += [file.close() for file in self._open.values()]
        self._open.clear()
        return self._staged

    def _by_partition(self, table: pa.Table) -> Iterator[tuple[tuple[Any, ...], pa.Table]]:
        """Yield the values and the rows of each partition."""
        columns, only = list(self._area.partition_columns), self._area.partition
        given = [name for name in columns if name in table.column_names]
        if only is not None and not given:
            yield tuple(only[name] for name in columns), table
            return
        if not columns:
            yield (), table
            return
        for name in columns:
            if name not in given:
                raise BatchAssetsError(f"the rows lack the partition column {name}")
        keys = _conform(table, pa.schema([self._area.schema.field(name) for name in columns]))
        positions = pa.array(range(table.num_rows), pa.int64())
        groups = keys.append_column("", positions).group_by(columns, use_threads=False).aggregate([("", "list")])
        try:
            found = groups.to_pylist()
        except (OverflowError, ValueError) as error:
            raise BatchAssetsError(
                f"a value of {', '.join(columns)} is not a partition value, such as a date after the year 9999: {error}"
            ) from error
        for group in found:
            values = tuple(typed(name, group[name], self._area.schema.field(name).type) for name in columns)
            if only is not None and values != tuple(only[name] for name in columns):
                raise BatchAssetsError(
                    f"a row with {describe(dict(zip(columns, values, strict=True)))} can't go into the partition "
                    f"{describe(only)}"
                )
            has_all_rows = len(group["_list"]) == table.num_rows
            yield values, table if has_all_rows else table.take(pa.array(group["_list"], pa.int64()))


class _FileWriter:
    """Writes one Parquet file; rows are buffered until they fill a row group."""

    def __init__(self, area: StagingArea, partition: Mapping[str, Any]) -> None:
        self._partition = {column: to_log(value) for column, value in partition.items()}
        self._path = "/".join([*filter(None, [folder(partition)]), f"part-{uuid.uuid4()}.parquet"])
        self._schema = area.file_schema
        self._files = file_system(area.uri, area.storage_options)
        self._footers: list[pq.FileMetaData] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[pa.Table] = []
        self._sums = dict.fromkeys(area.summed, 0)
        self._tallied = area.tallied
        self._tally: Counter[tuple[Any, ...]] = Counter()
        self._nested_nulls = {field.name: 0 for field in self._schema if pa.types.is_nested(field.type)}
        self.buffered_bytes = 0

    def add(self, rows: pa.Table) -> None:
        self._rows.append(rows)
        for name in self._sums:
            self._sums[name] += pc.sum(rows[name]).as_py() or 0
        if self._tallied:
            for group in rows.group_by(list(self._tallied)).aggregate([([], "count_all")]).to_pylist():
                self._tally[tuple(group[name] for name in self._tallied)] += group["count_all"]
        for name in self._nested_nulls:
            self._nested_nulls[name] += rows[name].null_count
        self.buffered_bytes += rows.nbytes

    @property
    def is_on_disk(self) -> bool:
        return self._writer is not None

    def flush(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path,
                self._schema,
                filesystem=self._files,
                compression="zstd",
                metadata_collector=self._footers,
            )
        if self._rows:
            self._writer.write_table(pa.concat_tables(self._rows))
        self._rows, self.buffered_bytes = [], 0

    def close(self) -> StagedFile:
        self.flush()
        assert self._writer is not None
        self._writer.close()
        (footer,) = self._footers
        size = self._files.get_file_info(self._path).size
        return StagedFile(
            self._path,
            size,
            footer.num_rows,
            json.dumps(self._partition),
            statistics(footer, self._schema),
            json.dumps(self._sums),
            json.dumps(self._nested_nulls),
            json.dumps([[values, rows] for values, rows in self._tally.items() if any(values)]),
        )


def stage(batches: Iterable[pa.RecordBatch | pa.Table], area: StagingArea) -> list[StagedFile]:
    """Write rows as one file per partition, or a few if there are very many partitions.

    Raises:
        BatchAssetsError: the rows don't fit the table.
    """
    writer = TableWriter(area)
    for rows in batches:
        writer.write(rows)
    return writer.close()


def staged_files_batches(batches: Iterator[pa.RecordBatch], area: StagingArea) -> Iterator[pa.RecordBatch]:
    """Stage rows inside ``DataFrame.mapInArrow``; each staged file becomes one row of ``STAGED_FILE_DDL``."""
    staged = stage(batches, area)
    if staged:
        yield pa.RecordBatch.from_pylist([asdict(file) for file in staged])


def _conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    missing = [name for name in schema.names if name not in rows.column_names]
    if missing:
        raise BatchAssetsError(f"the rows lack the column(s) {', '.join(missing)}")
    table = rows.select(schema.names)
    for field in schema:
        nulls = table[field.name].null_count
        if nulls and not field.nullable:
            raise BatchAssetsError(f"column {field.name} must not be null, but is null in {nulls} row(s)")
    try:
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise BatchAssetsError(f"the rows don't fit the table: {error}") from error
