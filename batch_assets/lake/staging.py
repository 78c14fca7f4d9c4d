"""Write data files that no commit knows yet, each with the statistics its add action needs."""

import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.storage import file_system

# Longer texts get no minimum and maximum: nobody prunes by them, and the log would carry them.
_LONGEST_STATISTIC = 64

STAGED_FILE_DDL = "path string, size long, rows long, statistics string"


@dataclass(frozen=True)
class StagedFile:
    """A data file that lies in the table's folder and waits for its commit.

    ``path`` is relative to the table, ``size`` in bytes, ``statistics`` the JSON of the Delta protocol
    (https://github.com/delta-io/delta/blob/master/PROTOCOL.md#per-file-statistics).
    """

    path: str
    size: int
    rows: int
    statistics: str


class TableWriter:
    """Collects batches of rows into one staged Parquet file."""

    def __init__(
        self, table_uri: str, partition: Mapping[str, str], schema: pa.Schema, storage_options: Mapping[str, str]
    ) -> None:
        folder = "/".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in partition.items())
        self._path = f"{folder}/part-{uuid.uuid4()}.parquet"
        self._schema = schema
        self._files = file_system(table_uri, storage_options)
        self._statistics = _Statistics(schema)
        self._writer: pq.ParquetWriter | None = None

    def write(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Append rows.

        Raises:
            BatchAssetsError: a column is missing, has another type, or has a null it must not have.
        """
        table = _conform(rows, self._schema)
        if table.num_rows == 0:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, self._schema, filesystem=self._files, compression="zstd")
        self._writer.write_table(table)
        self._statistics.add(table)

    def close(self) -> list[StagedFile]:
        """Finish the file; an empty list where no row was written."""
        if self._writer is None:
            return []
        self._writer.close()
        size = self._files.get_file_info(self._path).size
        return [StagedFile(self._path, size, self._statistics.rows, self._statistics.to_json())]


def stage(
    batches: Iterable[pa.RecordBatch | pa.Table],
    table_uri: str,
    partition: Mapping[str, str],
    schema: pa.Schema,
    storage_options: Mapping[str, str],
) -> list[StagedFile]:
    """Write rows as at most one file of one partition.

    Args:
        batches: rows in the columns of ``schema``, in any order of columns.
        table_uri: root of the table.
        partition: partition column to value.
        schema: the columns that data files hold.
        storage_options: as in delta-rs.

    Returns:
        The staged file, or nothing where there were no rows.

    Raises:
        BatchAssetsError: rows that don't fit the schema.
    """
    writer = TableWriter(table_uri, partition, schema, storage_options)
    for rows in batches:
        writer.write(rows)
    return writer.close()


def staged_files_batches(
    batches: Iterator[pa.RecordBatch],
    table_uri: str,
    partition: Mapping[str, str],
    schema: pa.Schema,
    storage_options: Mapping[str, str],
) -> Iterator[pa.RecordBatch]:
    """The same for ``DataFrame.mapInArrow``: rows in, a row of ``STAGED_FILE_DDL`` for each file out."""
    staged = stage(batches, table_uri, partition, schema, storage_options)
    if staged:
        yield pa.RecordBatch.from_pylist([file.__dict__ for file in staged])


def _conform(rows: pa.RecordBatch | pa.Table, schema: pa.Schema) -> pa.Table:
    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise BatchAssetsError(f"the rows to be written lack the column(s) {', '.join(missing)}")
    table = table.select(schema.names)
    for field in schema:
        nulls = table[field.name].null_count
        if nulls and not field.nullable:
            raise BatchAssetsError(f"column {field.name} must not be null, but {nulls} row(s) are")
    try:
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise BatchAssetsError(f"the rows to be written don't fit the table: {error}") from error


class _Statistics:
    """numRecords, nullCount, minValues and maxValues, kept while rows go by."""

    def __init__(self, schema: pa.Schema) -> None:
        self.rows = 0
        self._nulls = dict.fromkeys(schema.names, 0)
        self._ranges: dict[str, tuple[Any, Any]] = {}
        self._skipped = {
            field.name
            for field in schema
            if not (
                pa.types.is_integer(field.type)
                or pa.types.is_floating(field.type)
                or pa.types.is_string(field.type)
                or pa.types.is_timestamp(field.type)
            )
        }

    def add(self, table: pa.Table) -> None:
        import pyarrow.compute as pc

        self.rows += table.num_rows
        for name in table.column_names:
            column = table[name]
            self._nulls[name] += column.null_count
            if name in self._skipped or column.null_count == len(column):
                continue
            bounds = pc.min_max(column)
            low, high = bounds["min"].as_py(), bounds["max"].as_py()
            if isinstance(low, str) and max(len(low), len(high)) > _LONGEST_STATISTIC:
                self._skipped.add(name)
                self._ranges.pop(name, None)
                continue
            known = self._ranges.get(name)
            self._ranges[name] = (min(low, known[0]), max(high, known[1])) if known else (low, high)

    def to_json(self) -> str:
        ranges = {
            name: (low, high)
            for name, (low, high) in self._ranges.items()
            if not any(isinstance(value, float) and not math.isfinite(value) for value in (low, high))
        }
        return json.dumps(
            {
                "numRecords": self.rows,
                "minValues": {name: _plain(low) for name, (low, _) in ranges.items()},
                "maxValues": {
                    # Statistics hold milliseconds: a maximum is rounded up so that it stays one.
                    name: _plain(high + timedelta(microseconds=999) if isinstance(high, datetime) else high)
                    for name, (_, high) in ranges.items()
                },
                "nullCount": self._nulls,
            }
        )


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        utc = value.astimezone(UTC)
        return utc.strftime("%Y-%m-%dT%H:%M:%S.") + f"{utc.microsecond // 1000:03d}Z"
    return value
