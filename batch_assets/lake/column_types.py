"""The types of columns: from Spark's syntax to Arrow, from a JSON schema to Spark's syntax, and back."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pyarrow as pa

_SIMPLE: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bigint": pa.int64(),
    "long": pa.int64(),
    "int": pa.int32(),
    "integer": pa.int32(),
    "float": pa.float32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
# Types that columns copied from a table may have too, as decimals.
_COPIED = {**_SIMPLE, "smallint": pa.int16(), "tinyint": pa.int8(), "binary": pa.binary()}
_JSON_TYPES = {"string": "string", "integer": "bigint", "number": "double", "boolean": "boolean"}


@cache
def arrow_type(ddl: str) -> pa.DataType:
    """The Arrow type of a type in Spark's syntax, such as ``array<struct<name: string>>``.

    Raises:
        ValueError: it is not such a type, or has types other than texts, numbers, booleans, dates and times.
    """
    simple = _COPIED.get(ddl.strip().lower())
    if simple is not None:
        return simple
    from sqlglot import exp, parse_one
    from sqlglot.errors import ParseError

    try:
        tree = parse_one(f"CAST(x AS {ddl})", dialect="spark")
    except ParseError as error:
        raise ValueError(f"{ddl!r} is not a type in Spark's syntax") from error
    return _from_sql(tree.args["to"], exp)


def _from_sql(kind: Any, exp: Any) -> pa.DataType:
    if kind.this == exp.DataType.Type.STRUCT:
        if not all(isinstance(field, exp.ColumnDef) and field.args.get("kind") for field in kind.expressions):
            raise ValueError("use fields such as name STRING, amount DOUBLE")
        fields = [(field.this.name, _from_sql(field.args["kind"], exp)) for field in kind.expressions]
        if len({name.lower() for name, _ in fields}) < len(fields):
            raise ValueError("two fields have the same name")
        return pa.struct(fields)
    if kind.this in (exp.DataType.Type.ARRAY, exp.DataType.Type.LIST):
        return pa.list_(_from_sql(kind.expressions[0], exp))
    name = kind.sql(dialect="spark").lower()
    if kind.this == exp.DataType.Type.DECIMAL and kind.expressions:
        return pa.decimal128(*(int(part.name) for part in kind.expressions))
    if name not in _COPIED:
        raise ValueError(f"{name} is not supported here: use {', '.join(_SIMPLE)}, array or struct")
    return _COPIED[name]


def struct_ddl(schema: str | Mapping[str, Any]) -> str:
    """The type of answers, in Spark's syntax, from fields in that syntax or from the JSON schema of an object.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(schema, str):
        text = schema.strip()
        ddl = text if text.lower().startswith("struct<") else f"struct<{text}>"
        kind = arrow_type(ddl)
        _check_answer(kind)
        return spark_ddl(kind)
    if schema.get("type") != "object" or not schema.get("properties"):
        raise ValueError("a JSON schema must have the type object, and properties")
    return spark_ddl(arrow_type(_json_ddl(schema)))


def _check_answer(kind: pa.DataType) -> None:
    """Refuse types that only copied columns may have."""
    if pa.types.is_struct(kind) or pa.types.is_list(kind):
        for index in range(kind.num_fields):
            _check_answer(kind.field(index).type)
    elif kind not in _SIMPLE.values():
        raise ValueError(f"{spark_ddl(kind)} is not supported here: use {', '.join(_SIMPLE)}, array or struct")


def _json_ddl(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if kind == "object" and isinstance(schema.get("properties"), Mapping):
        fields = (f"`{name}`: {_json_ddl(value)}" for name, value in schema["properties"].items())
        return f"struct<{', '.join(fields)}>"
    if kind == "array" and isinstance(schema.get("items"), Mapping):
        return f"array<{_json_ddl(schema['items'])}>"
    if kind not in _JSON_TYPES:
        raise ValueError(f"the JSON type {kind!r} is not supported: use object, array, {', '.join(_JSON_TYPES)}")
    return _JSON_TYPES[kind]


def spark_ddl(kind: pa.DataType) -> str:
    """An Arrow type in Spark's syntax.

    Raises:
        ValueError: a contract can't have a column of that type.
    """
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'`{field.name}`: {spark_ddl(field.type)}' for field in kind)}>"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"array<{spark_ddl(kind.value_type)}>"
    if pa.types.is_decimal(kind):
        return f"decimal({kind.precision},{kind.scale})"
    found = next((name for name, known in _COPIED.items() if known == kind), None)
    if found is None:
        raise ValueError(f"the type {kind} is not supported here")
    return found


def has_ddl(kind: pa.DataType) -> bool:
    """Whether a contract can have a column of an Arrow type; timestamps without zone need newer Delta readers."""
    try:
        spark_ddl(kind)
    except ValueError:
        return False
    return True


def json_schema(kind: pa.DataType) -> dict[str, Any]:
    """The JSON schema of the values of an Arrow type; every value may be null."""
    if pa.types.is_struct(kind):
        properties = {field.name: json_schema(field.type) for field in kind}
        return {"type": ["object", "null"], "properties": properties, "required": [field.name for field in kind]}
    if pa.types.is_list(kind):
        return {"type": ["array", "null"], "items": json_schema(kind.value_type)}
    if pa.types.is_integer(kind):
        return {"type": ["integer", "null"]}
    if pa.types.is_floating(kind):
        return {"type": ["number", "null"]}
    return {"type": ["boolean" if pa.types.is_boolean(kind) else "string", "null"]}
