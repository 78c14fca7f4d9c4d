"""Values of partition columns: as Python values, as text in the Delta log, as names of folders.

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
# The limit of common file systems for one name.
_LONGEST_FOLDER = 255


def check_types(schema: pa.Schema, columns: Sequence[str]) -> None:
    """Refuse partition columns whose values no two readers of Delta agree on.

    Raises:
        BatchAssetsError: a column is nested, binary, decimal, or a timestamp without zone; with the remedy.
    """
    for column in columns:
        kind = schema.field(column).type
        if pa.types.is_timestamp(kind) and kind.tz is None:
            raise BatchAssetsError(
                f"{column} is a timestamp without zone, which would shut out readers of Delta older than version 3: "
                f"partition by a timestamp (CAST({column} AS TIMESTAMP)) or a date"
            )
        # delta-rs 1.6.6 can't read back a negative decimal that it has written, ClickHouse none at all.
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_decimal(kind):
            raise BatchAssetsError(f"{column} is of type {kind}: partition by text, an integer, a date or a timestamp")


def typed(column: str, value: Any, kind: pa.DataType) -> Any:
    """A partition value in the type of its column.

    Args:
        column: its name, for errors.
        value: a Python value, or its text.
        kind: type of the column.

    Raises:
        BatchAssetsError: the value is not of that type, or can't be a partition value.
    """
    if value is None:
        return None
    if not isinstance(value, str) and pa.types.is_temporal(kind) and not isinstance(value, dt.date):
        raise BatchAssetsError(f"{value!r} is no value of the partition column {column}: write a {kind} as text")
    try:
        plain = parse(value, kind) if isinstance(value, str) else pa.scalar(value, kind).as_py()
        _check(column, plain)
        return plain
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise BatchAssetsError(f"{value!r} is no value of the partition column {column} ({kind}): {error}") from error


def typed_partition(
    uri: str, partition: Mapping[str, Any], schema: pa.Schema, columns: Sequence[str]
) -> dict[str, Any]:
    """A partition with its columns in the table's order and its values in their types.

    Raises:
        BatchAssetsError: a partition column is missing, is not one, or has a value of another type.
    """
    if set(partition) != set(columns):
        raise BatchAssetsError(
            f"a partition of the table at {uri} is a value of {', '.join(columns) or 'no column'}, not of "
            f"{', '.join(partition) or 'no column'}"
        )
    for name in columns:
        if partition[name] is None and not schema.field(name).nullable:
            raise BatchAssetsError(f"the partition column {name} of the table at {uri} must not be null")
    return {name: typed(name, partition[name], schema.field(name).type) for name in columns}


def parse(text: str, kind: pa.DataType) -> Any:
    """The value that a text stands for in a type; a timestamp without zone is in UTC."""
    if pa.types.is_string(kind):
        return text
    if pa.types.is_timestamp(kind):
        moment = dt.datetime.fromisoformat(text)
        return moment.astimezone(dt.UTC) if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return pa.scalar(text).cast(kind).as_py()


def _check(column: str, value: Any) -> None:
    if value == "":
        raise BatchAssetsError(
            f"{column} is empty text, which readers of Delta take for null: write null, or a word such as 'none'"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise BatchAssetsError(f"{column} is {value}, which can't be a partition value: write null instead")
    if len(folder({column: value}).encode()) > _LONGEST_FOLDER:
        raise BatchAssetsError(
            f"{column} is {str(value)[:40]!r}…, too long for the name of a folder (255 bytes with its escapes): "
            "partition by something shorter"
        )


def to_log(value: Any) -> str | None:
    """The text of a value in the Delta log."""
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
    """The values of one file, or of one commit, from their text in the Delta log."""
    # Empty text stands for null. Other writers' values are taken as they are, whatever would be written here.
    return {column: parse(text, schema.field(column).type) if text else None for column, text in values.items()}


def folder(partition: Mapping[str, Any]) -> str:
    """Folder of a partition relative to the table; escaped as Hive does, which every reader tried decodes."""
    return "/".join(f"{quote(column, safe='')}={_folder_value(to_log(value))}" for column, value in partition.items())


def _folder_value(text: str | None) -> str:
    return _NULL_FOLDER if text is None else quote(text, safe="")


def describe(partition: Mapping[str, Any]) -> str:
    """A partition as people write it, for errors."""
    return ", ".join(f"{column}={to_log(value)}" for column, value in partition.items()) or "the whole table"
