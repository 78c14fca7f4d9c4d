"""Result types of ``returnType`` and ``responseFormat``: check them, and convert answers to them.

https://docs.databricks.com/en/sql/language-manual/functions/ai_query.html
"""

import json
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match

from batch_assets.ai_functions.requests import AiFunctionError

if TYPE_CHECKING:
    from pyspark.sql.types import DataType

_INTEGERS = {"tinyint": 8, "smallint": 16, "int": 32, "bigint": 64}


def schema_violation(text: str, schema: str) -> str | None:
    """Return why a text is not JSON that matches a schema, None if it is."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"the answer is not JSON: {error}"
    worst = best_match(_validator(schema).iter_errors(value))
    return None if worst is None else f"the answer doesn't match the schema: {worst.message[:200]}"


@lru_cache(maxsize=64)
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))


def type_of(ddl: str) -> "DataType":
    """Return the Spark type of a DDL string.

    Raises:
        AiFunctionError: the string is not a type, or answers can't be converted to it.
    """
    from pyspark.errors import PySparkException
    from pyspark.sql.types import DataType

    try:
        found = DataType.fromDDL(ddl)
    except PySparkException as error:
        raise AiFunctionError(f"ai_query: {ddl!r} is not a valid type: {str(error).splitlines()[0]}") from error
    schema_of(found)
    return found


def schema_of(kind: "DataType", *, nullable: bool = True) -> dict[str, Any]:
    """Return the JSON schema of a Spark type.

    Raises:
        AiFunctionError: JSON has no such type.
    """
    from pyspark.sql import types

    match kind:
        case types.StructType():
            schema: dict[str, Any] = {
                "type": "object",
                "properties": {field.name: schema_of(field.dataType, nullable=field.nullable) for field in kind},
                "required": kind.fieldNames(),
                "additionalProperties": False,
            }
        case types.ArrayType():
            schema = {"type": "array", "items": schema_of(kind.elementType, nullable=kind.containsNull)}
        case types.MapType(keyType=types.StringType()):
            values = schema_of(kind.valueType, nullable=kind.valueContainsNull)
            schema = {"type": "object", "additionalProperties": values}
        case types.StringType():
            schema = {"type": "string"}
        case types.BooleanType():
            schema = {"type": "boolean"}
        case types.IntegralType():
            schema = {"type": "integer"}
        case types.FractionalType():
            schema = {"type": "number"}
        case types.DateType():
            schema = {"type": "string", "format": "date"}
        case types.TimestampType() | types.TimestampNTZType():
            schema = {"type": "string", "format": "date-time"}
        case _:
            raise AiFunctionError(f"ai_query: answers can't be read as {kind.simpleString()}: use another type")
    return {**schema, "type": [schema["type"], "null"]} if nullable else schema


@dataclass(frozen=True)
class ResponseFormat:
    """A parsed ``responseFormat``.

    ``schema`` is the JSON schema that answers must match, as text, None for any text; ``sent`` is the
    ``response_format`` for the server, None to derive it from the schema; ``result`` is the result type, None for text.
    """

    schema: str | None = None
    sent: str | None = None
    result: "DataType | None" = None


ANY_TEXT = ResponseFormat()


def response_format(text: str) -> ResponseFormat:
    """Parse a ``responseFormat``.

    A DDL struct is the result type; if its only field is a struct, that struct is. The JSON forms (``text``,
    ``json_object``, ``json_schema``, or a JSON schema alone) return text.

    Raises:
        AiFunctionError: the format is not supported.
    """
    from pyspark.sql.types import StructType

    if not text.lstrip().startswith("{"):
        kind = type_of(text)
        if not isinstance(kind, StructType):
            raise AiFunctionError(
                f"[AI_FUNCTION_UNSUPPORTED_RESPONSE_FORMAT.DDL_STRING] the responseFormat {text!r} is not a STRUCT"
            )
        if len(kind) == 1 and isinstance(kind[0].dataType, StructType):
            kind = kind[0].dataType
        return ResponseFormat(json.dumps(schema_of(kind, nullable=False)), None, kind)
    unsupported = "[AI_FUNCTION_UNSUPPORTED_RESPONSE_FORMAT.JSON_STRING] the responseFormat"
    try:
        wanted = json.loads(text)
    except ValueError as error:
        raise AiFunctionError(f"{unsupported} is not JSON: {error}") from error
    match wanted:
        case {"type": "text"}:
            return ANY_TEXT
        case {"type": "json_object"}:
            schema, server_format = {"type": "object"}, wanted
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            server_format = {**wanted, "json_schema": {"name": "answer", **wanted["json_schema"]}}
        case {"type": "json_schema"}:
            raise AiFunctionError(f"{unsupported} has the type json_schema, but no json_schema.schema")
        case _:
            # Not strict, because strict servers refuse schemas that leave anything open.
            schema, server_format = wanted, {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise AiFunctionError(f"{unsupported} is not a valid JSON schema: {error.message}") from error
    return ResponseFormat(json.dumps(schema, sort_keys=True), json.dumps(server_format, sort_keys=True), None)


def read_as(text: str, kind: "DataType | None") -> Any:
    """Convert an answer to a Python value for a Spark type.

    Raises:
        ValueError: the answer doesn't match the type.
    """
    from pyspark.sql import types

    if kind is None or isinstance(kind, types.StringType):
        return text
    if isinstance(kind, types.DateType | types.TimestampType | types.TimestampNTZType):
        return _value(text.strip().strip('"'), kind)
    try:
        return _value(json.loads(text), kind)
    except json.JSONDecodeError:
        # Models often write True and False instead of true and false.
        return _value(json.loads(text.strip().lower()), kind)


def _value(value: Any, kind: "DataType") -> Any:
    from pyspark.sql import types

    match kind, value:
        case _, None:
            return None
        case types.StructType(), dict():
            missing = [field.name for field in kind if not field.nullable and value.get(field.name) is None]
            if missing:
                raise ValueError(f"the field {missing[0]} is missing")
            return {field.name: _value(value.get(field.name), field.dataType) for field in kind}
        case types.ArrayType(), list():
            return [_value(item, kind.elementType) for item in value]
        case types.MapType(), dict():
            return [(key, _value(item, kind.valueType)) for key, item in value.items()]
        case types.StringType(), _:
            return value if isinstance(value, str) else json.dumps(value)
        case types.BooleanType(), bool():
            return value
        case types.IntegralType(), int() | float() if not isinstance(value, bool) and value % 1 == 0:
            if not -(2 ** (_INTEGERS[kind.simpleString()] - 1)) <= value < 2 ** (_INTEGERS[kind.simpleString()] - 1):
                raise ValueError(f"{value} is out of range")
            return int(value)
        case types.DecimalType(), int() | float() if not isinstance(value, bool):
            number = Decimal(str(value)).quantize(Decimal(1).scaleb(-kind.scale))
            if number.adjusted() >= kind.precision - kind.scale:
                raise ValueError(f"{value} has too many digits")
            return number
        case types.FractionalType(), int() | float() if not isinstance(value, bool):
            return float(value)
        case types.DateType(), str():
            return date.fromisoformat(value)
        case types.TimestampType() | types.TimestampNTZType(), str():
            return datetime.fromisoformat(value)
        case _:
            raise ValueError(f"{json.dumps(value)[:80]} is not of type {kind.simpleString()}")
