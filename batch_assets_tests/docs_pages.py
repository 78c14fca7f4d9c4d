"""The documentation pages and the command blocks in them.

A test runs every ``sh``, ``python`` and ``sql`` block, unless the line before it says why not. Instructions for the
test are in an HTML comment on the line before a block:

- ``<!-- not run: needs the Hugging Face hub -->``
- ``<!-- file: mine/reviews.jsonl -->``: the block is the content of that file
- ``<!-- background: Press Ctrl-C -->``: the block runs until the page ends; later blocks wait for this output
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUN = {"sh", "python", "sql"}
SHOWN = {"text", "toml", "jsonl", "yaml", "mermaid"}

_COMMENT = re.compile(r"<!-- (not run|file|background): (.+) -->")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its position, language and text, and what the line before it says."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None
    file: str | None = None
    background: str | None = None

    @property
    def is_run(self) -> bool:
        return self.language in RUN and self.not_run is None and self.file is None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """README and everything in docs, in the order in which the tests run them."""
    first = ["README.md", "docs/README.md", "docs/tutorial.md"]
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    return [*first, *sorted(found - set(first))]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    found = []
    lines = (ROOT / page).read_text().splitlines()
    start: int | None = None
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        said = _COMMENT.fullmatch(lines[start - 2]) if start > 1 else None
        options = {said[1].replace(" ", "_"): said[2]} if said else {}
        text = "\n".join(lines[start : number - 1]) + "\n"
        found.append(Block(page, start, lines[start - 1][3:], text, **options))
        start = None
    assert start is None, f"{page}:{start} is never closed"
    return found


def links(page: str) -> list[str]:
    """The targets of a page's links to files of this project."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    return [target for target in _LINK.findall(text) if "://" not in target]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
