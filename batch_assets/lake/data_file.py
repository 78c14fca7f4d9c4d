"""Read the rows of one data file of a Delta table, in the columns of the table."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

# Rows are handed on in batches of about this size, however long their texts are. Spark read rows of 1 KB a tenth faster
# in batches of 2 MB than of 8.
_BATCH_BYTES = 2 * 1024 * 1024
_MOST_ROWS = 65_536


def read_data_file(
    files: pafs.FileSystem,
    path: str,
    schema: pa.Schema,
    partition: Mapping[str, Any],
    start: int = 0,
    length: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a data file, or of a part of it.

    Everything happens in the calling thread: a file system may be written in Python, and a thread of Arrow's that
    still talks to one while the interpreter ends takes the process down with it.

    Args:
        files: file system with the root of the table.
        path: of the file.
        schema: columns wanted; one that the file doesn't have is null, as after a column was added.
        partition: partition column to value; these are not in the file.
        start: with ``length``, the bytes of the part. A row group belongs to the part that holds its middle.
        length: by default, the rest of the file.
    """
    with files.open_input_file(path) as source:
        # Spark before 3 wrote timestamps as INT96, whose nanoseconds don't reach the year 9999.
        parquet = pq.ParquetFile(source, pre_buffer=False, coerce_int96_timestamp_unit="us")
        stored = [name for name in schema.names if name not in partition and name in parquet.schema_arrow.names]
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group)
            if rows.num_rows == 0 or not _belongs(rows, start, length):
                continue
            bytes_a_row = max(rows.total_byte_size // rows.num_rows, 1)
            size = min(max(_BATCH_BYTES // bytes_a_row, 1), _MOST_ROWS)
            for batch in parquet.iter_batches(size, row_groups=[group], columns=stored, use_threads=False):
                yield _in_columns(batch, schema, partition)


def _belongs(rows: pq.RowGroupMetaData, start: int, length: int | None) -> bool:
    first = rows.column(0)
    begin = first.data_page_offset
    if first.dictionary_page_offset is not None:
        begin = min(begin, first.dictionary_page_offset)
    size = sum(rows.column(index).total_compressed_size for index in range(rows.num_columns))
    middle = begin + size // 2
    return start <= middle and (length is None or middle < start + length)


def _in_columns(batch: pa.RecordBatch, schema: pa.Schema, partition: Mapping[str, Any]) -> pa.RecordBatch:
    columns = []
    for field in schema:
        if field.name in partition:
            columns.append(pa.repeat(pa.scalar(partition[field.name], field.type), batch.num_rows))
        elif field.name in batch.schema.names:
            columns.append(batch.column(field.name).cast(field.type))
        else:
            columns.append(pa.nulls(batch.num_rows, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
