"""Markdown in which any text shows as text: documents, and names that others chose, may hold markup."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

# In one pass: one after the other, the # of a reference would be replaced again.
_AS_TEXT = str.maketrans({character: f"&#{ord(character)};" for character in "\\`*_{}[]()#+!|~"})


def as_text(value: Any) -> str:
    """A value on one line, without what Markdown or HTML would take for markup; None is empty."""
    text = "" if value is None else str(value)
    return html.escape(" ".join(text.split()), quote=False).translate(_AS_TEXT)


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *([as_text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
