"""The text of a record, from one column or from a template over several."""

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any


class TextTemplate:
    """The name of a column, or a template such as ``{subject}: {body}``.

    Only ``{column}`` stands for a value; ``{{`` and ``}}`` are literal braces. Values are not expanded again.

    Raises:
        ValueError: a field is not the plain name of a column, or a brace has no partner.
    """

    def __init__(self, template: str) -> None:
        if "{" not in template and "}" not in template:
            self._parts: list[tuple[str, str | None]] = [("", template)]
        else:
            self._parts = [
                (literal, None if field is None else _column(field, spec, conversion))
                for literal, field, spec, conversion in Formatter().parse(template)
            ]
        self.columns = list(dict.fromkeys(column for _, column in self._parts if column is not None))
        if not self.columns or not all(column.strip() for column in self.columns):
            raise ValueError("name at least one column")

    def render(self, fields: Mapping[str, Any]) -> str | None:
        """The text of a record: null values become empty, and None means that all of them are null."""
        if all(fields.get(column) is None for column in self.columns):
            return None
        return "".join(
            literal + ("" if column is None else as_text(fields.get(column)) or "") for literal, column in self._parts
        )


def _column(field: str, spec: str | None, conversion: str | None) -> str:
    if spec or conversion or re.search(r"[.\[\]]", field):
        raise ValueError(f"use only the names of columns in braces, such as {{{re.split(r'[.[]', field)[0]}}}")
    return field


def as_text(value: Any) -> str | None:
    """A value as text: texts and numbers as they are, true and false as in JSON, null as None."""
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)
