"""Values of partition columns: as Python values, as text in the Delta log, and as folder names.

https://github.com/delta-io/delta/blob/master/PROTOCOL.md#partition-value-serialization
"""

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from batch_assets.errors import BatchAssetsError

_NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
# Common file systems limit a name to this many bytes.
_MAX_FOLDER_BYTES = 255


def check_types(schema: pa.Schema, columns: Sequence[str]) -> None:
    """Refuse partition columns of types that Delta readers disagree on.

    Raises:
        BatchAssetsError: a column is nested, binary, decimal, or a timestamp without zone.
    """
    for column in columns:
        kind = schema.field(column).type
        if pa.types.is_timestamp(kind) and kind.tz is None:
            raise BatchAssetsError(
                f"{column} is a timestamp without zone, which Delta readers before version 3 can't read: partition by "
                f"a timestamp (CAST({column} AS TIMESTAMP)) or a date"
            )
        # delta-rs 1.6.6 can't read negative decimals that it wrote, and ClickHouse can't read any decimals.
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_decimal(kind):
            raise BatchAssetsError(f"{column} is of type {kind}: partition by text, an integer, a date or a timestamp")


def typed(column: str, value: Any, kind: pa.DataType) -> Any:
    """Convert a partition value to the type of its column.

    Args:
        column: name of the column, for errors.
        value: a Python value, or its text.
        kind: type of the column.

    Raises:
        BatchAssetsError: the value does not have that type, or can't be a partition value.
    """
    if value is None:
        return None
    if not isinstance(value, str) and pa.types.is_temporal(kind) and not isinstance(value, dt.date):
        raise BatchAssetsError(f"{value!r} is not valid for the partition column {column}: write a {kind} as text")
    try:
        converted = parse(value, kind) if isinstance(value, str) else pa.scalar(value, kind).as_py()
        _check_value(column, converted)
        return converted
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise BatchAssetsError(f"{value!r} is not valid for the partition column {column} ({kind}): {error}") from error


def typed_partition(
    uri: str, partition: Mapping[str, Any], schema: pa.Schema, columns: Sequence[str]
) -> dict[str, Any]:
    """Return a partition with its columns in the table's order and its values converted to their types.

    Raises:
        BatchAssetsError: a partition column is missing, unknown, or has a value of the wrong type.
    """
    if set(partition) != set(columns):
        raise BatchAssetsError(
            f"the table at {uri} is partitioned by {', '.join(columns) or 'no column'}, but the partition names "
            f"{', '.join(partition) or 'no column'}"
        )
    for name in columns:
        if partition[name] is None and not schema.field(name).nullable:
            raise BatchAssetsError(f"the partition column {name} of the table at {uri} must not be null")
    return {name: typed(name, partition[name], schema.field(name).type) for name in columns}


def parse(text: str, kind: pa.DataType) -> Any:
    """Parse text as a value of a type; a timestamp without zone is in UTC."""
    if pa.types.is_string(kind):
        return text
    if pa.types.is_timestamp(kind):
        moment = dt.datetime.fromisoformat(text)
        return moment.astimezone(dt.UTC) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return pa.scalar(text).cast(kind).as_py()


def _check_value(column: str, value: Any) -> None:
    if value == "":
        raise BatchAssetsError(
            f"{column} is empty text, which Delta readers treat as null: write null, or a word such as 'none'"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise BatchAssetsError(f"{column} is {value}, which can't be a partition value: write null instead")
    if len(folder({column: value}).encode()) > _MAX_FOLDER_BYTES:
        raise BatchAssetsError(
            f"{column} is {str(value)[:40]!r}…, too long for the name of a folder (255 bytes with escapes): "
            "partition by something shorter"
        )


def to_log(value: Any) -> str | None:
    """Format a value as text for the Delta log."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return f"{value:f}"
    return str(value)


def from_log(values: Mapping[str, str | None], schema: pa.Schema) -> dict[str, Any]:
    """Parse the partition values of one file or commit from their text in the Delta log."""
    # Empty text means null. Values of other writers are accepted even if this package would refuse to write them.
    return {column: parse(text, schema.field(column).type) if text else None for column, text in values.items()}


def folder(partition: Mapping[str, Any]) -> str:
    """Return a partition's folder relative to the table, escaped as in Hive, which every tested reader decodes."""
    return "/".join(f"{quote(column, safe='')}={_folder_value(to_log(value))}" for column, value in partition.items())


def _folder_value(text: str | None) -> str:
    return _NULL_FOLDER if text is None else quote(text, safe="")


def describe(partition: Mapping[str, Any]) -> str:
    """Format a partition for error messages."""
    return ", ".join(f"{column}={to_log(value)}" for column, value in partition.items()) or "the whole table"
