"""Example documents for the report: the summaries nearest to their ground truth, and those farthest from it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from batch_assets.lake.lake import BatchSnapshot
from batch_assets.quality.batch_measures import last_measured

_TITLES = {"worst": "Farthest from the ground truth", "best": "Nearest to the ground truth"}
_TEXTS = ("document", "summary", "generated_summary")
_MAX_CHARACTERS = 1500


def examples(scored: BatchSnapshot, rows: Sequence[Mapping[str, Any]], count: int) -> dict[str, list[dict[str, Any]]]:
    """Read the documents with the best and the worst ROUGE-1 over all batches.

    Args:
        scored: ``m4_1_batch_inference``.
        rows: rows of ``summary_quality``.
        count: number of documents at each end; with 0, no text is read.

    Returns:
        By title, a list of ``batch``, ``id``, ``rouge1`` and the shortened texts.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, title in _TITLES.items() if count else ():
        shown = []
        for extreme in _extremes(rows, scored.table.name, name, count):
            texts = _texts(scored, extreme["batch"], extreme["id"])
            # The batch may have changed since it was measured, and lost the document.
            if texts is not None:
                shown.append({**extreme, **texts})
        if shown:
            found[title] = shown
    return found


def _extremes(rows: Iterable[Mapping[str, Any]], table: str, name: str, count: int) -> list[dict[str, Any]]:
    """Batch, id and ROUGE-1 of a table's best or worst summaries over all batches."""
    latest = last_measured(row for row in rows if row["table_name"] == table)
    found = [{"batch": row["batch"], **extreme} for row in latest for extreme in json.loads(row[name] or "[]")]
    return sorted(found, key=lambda extreme: (extreme["rouge1"], extreme["id"]), reverse=name == "best")[:count]


def _texts(scored: BatchSnapshot, batch: str, document_id: str) -> dict[str, str] | None:
    for part in scored.read(batch, ["id", *_TEXTS]):
        for row in part.to_pylist():
            if row["id"] == document_id:
                return {name: _cut(row[name] or "") for name in _TEXTS}
    return None


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + " …"
