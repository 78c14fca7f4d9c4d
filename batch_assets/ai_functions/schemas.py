"""Types of results: what ``returnType`` and ``responseFormat`` ask for, checked and read.

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


def problem_with(text: str, schema: str) -> str | None:
    """What keeps a text from being JSON that meets a schema, None if nothing does."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"the answer is not JSON: {error}"
    worst = best_match(_validator(schema).iter_errors(value))
    return None if worst is None else f"the answer doesn't meet the schema: {worst.message[:200]}"


@lru_cache(maxsize=64)
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))


def type_of(ddl: str) -> "DataType":
    """The Spark type that a DDL text names.

    Raises:
        AiFunctionError: it names none, or one that no answer can be read as.
    """
    from pyspark.errors import PySparkException
    from pyspark.sql.types import DataType

    try:
        found = DataType.fromDDL(ddl)
    except PySparkException as error:
        raise AiFunctionError(f"ai_query: {ddl!r} names no type: {str(error).splitlines()[0]}") from error
    schema_of(found)
    return found


def schema_of(kind: "DataType", *, nullable: bool = True) -> dict[str, Any]:
    """The JSON schema of a Spark type.

    Raises:
        AiFunctionError: JSON has nothing like it.
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
            raise AiFunctionError(f"ai_query: no answer can be read as {kind.simpleString()}")
    return {**schema, "type": [schema["type"], "null"]} if nullable else schema


@dataclass(frozen=True)
class ResponseFormat:
    """What a ``responseFormat`` asks for.

    ``schema`` is the JSON schema that answers must meet, as text, None for any text; ``told`` is what the server is
    told, None where it follows from the schema; ``result`` is the type of the result, None for text.
    """

    schema: str | None = None
    told: str | None = None
    result: "DataType | None" = None


ANY_TEXT = ResponseFormat()


def response_format(text: str) -> ResponseFormat:
    """Read a ``responseFormat``.

    A DDL struct gives its type; where it has one field that is a struct itself, that one's. The JSON forms
    (``text``, ``json_object``, ``json_schema``, or a JSON schema alone) give text.

    Raises:
        AiFunctionError: it asks for nothing that there is.
    """
    from pyspark.sql.types import StructType

    if not text.lstrip().startswith("{"):
        kind = type_of(text)
        if not isinstance(kind, StructType):
            raise AiFunctionError(
                f"[AI_FUNCTION_UNSUPPORTED_RESPONSE_FORMAT.DDL_STRING] the responseFormat {text!r} is no STRUCT"
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
            schema, told = {"type": "object"}, wanted
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            told = {**wanted, "json_schema": {"name": "answer", **wanted["json_schema"]}}
        case {"type": "json_schema"}:
            raise AiFunctionError(f"{unsupported} has the type json_schema, but nothing under json_schema.schema")
        case _:
            # Servers that are told to be strict refuse schemas that leave anything open.
            schema, told = wanted, {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise AiFunctionError(f"{unsupported} is no JSON schema: {error.message}") from error
    return ResponseFormat(json.dumps(schema, sort_keys=True), json.dumps(told, sort_keys=True), None)


def read_as(text: str, kind: "DataType | None") -> Any:
    """An answer as a value of a Spark type, in Python.

    Raises:
        ValueError: it can't be read so.
    """
    from pyspark.sql import types

    if kind is None or isinstance(kind, types.StringType):
        return text
    if isinstance(kind, types.DateType | types.TimestampType | types.TimestampNTZType):
        return _value(text.strip().strip('"'), kind)
    try:
        return _value(json.loads(text), kind)
    except json.JSONDecodeError:
        # True and False, as models like to write them.
        return _value(json.loads(text.strip().lower()), kind)


def _value(value: Any, kind: "DataType") -> Any:
    from pyspark.sql import types

    match kind, value:
        case _, None:
            return None
        case types.StructType(), dict():
            missing = [field.name for field in kind if not field.nullable and value.get(field.name) is None]
            if missing:
                raise ValueError(f"it has no {missing[0]}")
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
            raise ValueError(f"{json.dumps(value)[:80]} is no {kind.simpleString()}")
