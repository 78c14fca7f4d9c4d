"""Extraction: the fields of a schema, from each text."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from batch_assets.lake.column_types import arrow_type, json_schema, struct_ddl
from batch_assets.quality.figures import Figure
from batch_assets.settings import EXTRACTION
from batch_assets.tasks.task import AnswerError, Task

_FENCE = re.compile(r"^```(?:json)?\s*(.*?)\s*```$", re.DOTALL)
_SHOWN_CHARACTERS = 200


class Extraction(Task):
    """Fields as a typed struct, scored by the share of the reference's fields that are equal.

    Args:
        schema: the fields in Spark's syntax, such as ``name STRING, amount DOUBLE``, or a JSON schema of an object.

    Raises:
        ValueError: the schema is neither.
    """

    name = EXTRACTION
    lengths = (0, 120)
    new_tokens = 240
    main_score = "fields_equal"
    words = ("extraction", "extractions")
    output_column = "extracted"
    cue = "JSON:"
    system_prompt = "You extract data from texts. Answer with one JSON object only."

    def __init__(self, schema: str) -> None:
        self.output_type = struct_ddl(json.loads(schema) if schema.lstrip().startswith("{") else schema)
        kind = arrow_type(self.output_type)
        self.fields = [field.name for field in kind]
        self._schema = json.dumps(json_schema(kind) | {"type": "object", "additionalProperties": False})
        self._type = kind
        listed = ", ".join(f'"{field.name}" ({_in_words(field.type)})' for field in kind)
        self.prompt = (
            f"Extract these fields from the following text: {listed}. Use null for what the text does not say.\n\n"
            "{document}"
        )

    def read(self, text: str) -> str:
        """The JSON object in the text, with the fields of the schema in their order.

        Raises:
            AnswerError: the text is not JSON, or does not match the schema.
        """
        fenced = _FENCE.match(text.strip())
        try:
            value = json.loads(fenced.group(1) if fenced else text)
        except ValueError as error:
            raise AnswerError(f"the answer is not JSON: {error}") from error
        worst = best_match(_validator(self._schema).iter_errors(value))
        if worst is not None:
            raise AnswerError(f"the answer doesn't match the schema: {worst.message[:_SHOWN_CHARACTERS]}")
        try:
            normalized = _normalized(value, self._type)
        except (ValueError, OverflowError) as error:
            raise AnswerError(f"the answer doesn't match the schema: {error}") from error
        return json.dumps(normalized, ensure_ascii=False)

    @property
    def rules(self) -> str:
        """The type."""
        return self.output_type

    @property
    def figures(self) -> Sequence[Figure]:
        """The share of equal fields, and the share of equal answers for each field."""
        each = (
            Figure(f"{name}_equal", f"{name} equal", f"Share of the answers whose field {name} is right", True)
            for name in self.fields
        )
        first = Figure("fields_equal", "fields equal", "Mean share of the fields that equal the reference", True)
        return (first, *each)

    def scores(self, document: str, reference: str, text: str) -> dict[str, float]:
        """The share of equal fields, and 1 or 0 for each of them."""
        wanted, found = _object(reference), _object(text)
        equal = {
            field.name: float(field.name in found and _same(wanted.get(field.name), found[field.name], field.type))
            for field in self._type
        }
        each = {f"{name}_equal": value for name, value in equal.items()}
        return {"fields_equal": sum(equal.values()) / len(equal), **each}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _same(wanted: Any, found: Any, kind: pa.DataType) -> bool:
    """Whether two values are equal; texts regardless of case and of blanks at the ends."""
    with suppress(ValueError, TypeError, KeyError, OverflowError):  # a reference that does not match the schema
        wanted, found = _normalized(wanted, kind), _normalized(found, kind)
    if isinstance(wanted, str) and isinstance(found, str):
        return wanted.strip().casefold() == found.strip().casefold()
    return bool(wanted == found)


@lru_cache(maxsize=64)
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))


def _normalized(value: Any, kind: pa.DataType) -> Any:
    """A value that matches the JSON schema as Spark reads it: fields in order, ISO 8601, whole numbers without a point.

    Raises:
        ValueError: a text is not a date or time in ISO 8601.
        OverflowError: a number is too large.
    """
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {field.name: _normalized(value[field.name], field.type) for field in kind}
    if pa.types.is_list(kind):
        return [_normalized(item, kind.value_type) for item in value]
    if pa.types.is_date(kind):
        return date.fromisoformat(value).isoformat()
    if pa.types.is_timestamp(kind):
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    if pa.types.is_integer(kind):
        if abs(value) >= 1 << (kind.bit_width - 1):
            raise OverflowError(f"{value} is too large")
        return int(value)
    return value


def _in_words(kind: pa.DataType) -> str:
    """A type as a prompt says it."""
    if pa.types.is_struct(kind):
        return "object with " + ", ".join(f'"{field.name}" ({_in_words(field.type)})' for field in kind)
    if pa.types.is_list(kind):
        return f"list of {_in_words(kind.value_type)}"
    if pa.types.is_date(kind):
        return "date as YYYY-MM-DD"
    if pa.types.is_timestamp(kind):
        return "date and time as YYYY-MM-DDTHH:MM:SS"
    return str(json_schema(kind)["type"][0])
