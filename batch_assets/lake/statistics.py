"""Compute the statistics of a data file's add action from the file's footer.

https://github.com/delta-io/delta/blob/master/PROTOCOL.md#per-file-statistics
"""

import datetime as dt
import json
import math
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# Longer texts get no minimum and maximum: they rarely help to skip files, and they would bloat the log.
_MAX_TEXT_LENGTH = 64


def statistics(footer: pq.FileMetaData, schema: pa.Schema) -> str:
    """Return ``numRecords``, ``nullCount``, ``minValues`` and ``maxValues`` as JSON.

    Args:
        footer: the file's footer.
        schema: its columns. Nested columns get no statistics, and neither do columns with a dot in their name, whose
            path could be a struct's field. Booleans and binaries get no minimum and maximum.
    """
    nulls: dict[str, int] = {}
    ranges: dict[str, tuple[Any, Any]] = {}
    positions = {footer.schema.column(index).path: index for index in range(footer.num_columns)}
    for field in schema:
        if pa.types.is_nested(field.type) or "." in field.name:
            continue
        chunks = [
            footer.row_group(group).column(positions[field.name]).statistics for group in range(footer.num_row_groups)
        ]
        nulls[field.name] = sum(chunk.null_count for chunk in chunks)
        found = _range([chunk for chunk in chunks if chunk.num_values], field.type)
        if found is not None:
            ranges[field.name] = found
    return json.dumps(
        {
            "numRecords": footer.num_rows,
            "minValues": {name: low for name, (low, _) in ranges.items()},
            "maxValues": {name: high for name, (_, high) in ranges.items()},
            "nullCount": nulls,
        }
    )


def _range(chunks: list[pq.Statistics], kind: pa.DataType) -> tuple[Any, Any] | None:
    """Return minimum and maximum as JSON values; None if they are unknown, too long, or not exact in JSON."""
    if not chunks or pa.types.is_boolean(kind) or pa.types.is_binary(kind):
        return None
    if not all(chunk.has_min_max for chunk in chunks):
        return None
    try:
        low, high = min(chunk.min for chunk in chunks), max(chunk.max for chunk in chunks)
    except (OverflowError, ValueError):
        return None  # Python can't represent the value, such as a date after the year 9999
    bounds = _json_value(low), _json_value(high)
    return None if None in bounds else bounds


def _json_value(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _MAX_TEXT_LENGTH else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return float(value) if Decimal(repr(float(value))) == value else None
    if isinstance(value, dt.datetime) and value.tzinfo:
        return value.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    if isinstance(value, dt.datetime):
        return value.isoformat(timespec="microseconds")
    return value.isoformat() if isinstance(value, dt.date) else value
