"""Markdown that shows values literally: documents and user-chosen names may contain markup."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

# Translated in one pass: replacing them one by one would escape the # of a character reference again.
_AS_TEXT = str.maketrans({character: f"&#{ord(character)};" for character in "\\`*_{}[]()#+!|~"})


def as_text(value: Any) -> str:
    """Escape a value for Markdown and HTML, on one line. None becomes empty."""
    text = "" if value is None else str(value)
    return html.escape(" ".join(text.split()), quote=False).translate(_AS_TEXT)


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Build a Markdown table."""
    lines = [titles, ["---"] * len(titles), *([as_text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
