"""How the data files of a table store its columns: under other names, in narrower types, variants as two binaries.

https://github.com/delta-io/delta/blob/master/PROTOCOL.md#column-mapping
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.features import column_mapping_mode
from batch_assets.text import valid_text

_NAME, _ID = "delta.columnMapping.physicalName", "delta.columnMapping.id"
# Where Arrow keeps the field ids of a Parquet file.
_FIELD_ID = b"PARQUET:field_id"
# Spark's Arrow type of variants; the metadata tells it from a struct with the same fields.
_VARIANT = pa.struct(
    [
        pa.field("value", pa.binary(), nullable=False),
        pa.field("metadata", pa.binary(), nullable=False, metadata={"variant": "true"}),
    ]
)


def columns_of(delta: Any) -> tuple[pa.Schema, pa.Schema]:
    """Return the columns of a ``deltalake.DeltaTable``, and in the same order and shape how its files store them.

    A stored field has the name to look up in the files; if it has a field id, the id counts and not the name.
    """
    mode = column_mapping_mode(delta)
    described = json.loads(delta.schema().to_json())
    wanted, stored = _fields(pa.schema(delta.schema().to_arrow()), described["fields"], mode)
    return pa.schema(wanted), pa.schema(stored)


def _fields(
    fields: Iterable[pa.Field], described: Iterable[Mapping[str, Any]], mode: str
) -> tuple[list[pa.Field], list[pa.Field]]:
    wanted, stored = [], []
    for field, description in zip(fields, described, strict=True):
        kind, stored_kind = _types(field.type, description["type"], mode)
        wanted.append(field.with_type(kind))
        name, ids = field.name, None
        if mode != "none":
            name = description["metadata"][_NAME]
        if mode == "id":
            ids = {_FIELD_ID: str(description["metadata"][_ID])}
        stored.append(pa.field(name, stored_kind, field.nullable, metadata=ids))
    return wanted, stored


def _types(kind: pa.DataType, described: Any, mode: str) -> tuple[pa.DataType, pa.DataType]:
    if described == "variant":
        return _VARIANT, _VARIANT
    if isinstance(described, str):
        return kind, kind
    if described["type"] == "struct":
        wanted, stored = _fields(kind, described["fields"], mode)
        return pa.struct(wanted), pa.struct(stored)
    if described["type"] == "array":
        item, stored_item = _types(kind.value_type, described["elementType"], mode)
        return pa.list_(kind.value_field.with_type(item)), pa.list_(kind.value_field.with_type(stored_item))
    key, stored_key = _types(kind.key_type, described["keyType"], mode)
    item, stored_item = _types(kind.item_type, described["valueType"], mode)
    return (
        pa.map_(kind.key_field.with_type(key), kind.item_field.with_type(item)),
        pa.map_(kind.key_field.with_type(stored_key), kind.item_field.with_type(stored_item)),
    )


def _field_id(field: pa.Field) -> bytes | None:
    found: bytes | None = (field.metadata or {}).get(_FIELD_ID)
    return found


def positions_of(stored: Iterable[pa.Field], fields: Iterable[pa.Field]) -> list[int | None]:
    """Return the position of each stored field among the fields of a file or of a struct in it, None if missing."""
    names, numbers = {}, {}
    for position, field in enumerate(fields):
        names[field.name] = position
        numbers[_field_id(field)] = position
    return [names.get(field.name) if (number := _field_id(field)) is None else numbers.get(number) for field in stored]


def check_field_ids(fields: Iterable[pa.Field], stored: pa.Schema, path: str) -> None:
    """Refuse a file without field ids if the table's columns are found by them.

    Raises:
        BatchAssetsError: the file has no field ids.
    """
    if any(map(_field_id, stored)) and not any(map(_field_id, fields)):
        raise BatchAssetsError(f"{path} has no field ids, which the table's column mapping (mode id) requires")


def as_wanted(values: pa.Array, stored: pa.DataType, wanted: pa.DataType) -> pa.Array:
    """Convert values as a file stores them to the type of their column; missing fields of structs become null.

    Texts are in valid UTF-8 from here on.

    Args:
        values: the values in the file, possibly of an older, narrower type.
        stored: the names and ids of the nested fields in the files.
        wanted: the type of the column.

    Raises:
        BatchAssetsError: the file splits the values of a variant into typed columns.
        pyarrow.ArrowInvalid: a value does not fit the type.
    """
    if pa.types.is_struct(wanted) and pa.types.is_struct(values.type):
        found = list(values.type)
        if wanted.equals(_VARIANT, check_metadata=True) and any(field.name == "typed_value" for field in found):
            raise BatchAssetsError(
                "the table has shredded variants (variantShredding), which this reader does not support"
            )
        positions = positions_of(stored, found)
        children = [
            pa.nulls(len(values), field.type)
            if position is None
            else as_wanted(values.field(position), as_stored.type, field.type)
            for position, as_stored, field in zip(positions, stored, wanted, strict=True)
        ]
        return pa.StructArray.from_arrays(children, fields=list(wanted), mask=values.is_null())
    if pa.types.is_map(wanted) and pa.types.is_map(values.type):
        entries = pa.StructArray.from_arrays(
            [
                as_wanted(values.keys, stored.key_type, wanted.key_type),
                as_wanted(values.items, stored.item_type, wanted.item_type),
            ],
            fields=[wanted.key_field, wanted.item_field],
        )
        return _with_child(values, wanted, entries)
    if pa.types.is_list(wanted) and pa.types.is_list(values.type):
        return _with_child(values, wanted, as_wanted(values.values, stored.value_type, wanted.value_type))
    found = values.cast(wanted)
    return valid_text(found) if pa.types.is_string(wanted) else found


def _with_child(values: pa.Array, kind: pa.DataType, child: pa.Array) -> pa.Array:
    """Return a list or map with the same lengths and nulls but another child array."""
    return pa.Array.from_buffers(kind, len(values), values.buffers()[:2], offset=values.offset, children=[child])
