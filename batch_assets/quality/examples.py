"""Documents that people should read: those whose summaries are nearest to their ground truth, and farthest from it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from batch_assets.lake.lake import BatchSnapshot
from batch_assets.quality.batches import last_measured

_TITLES = {"worst": "Farthest from the ground truth", "best": "Nearest to the ground truth"}
_TEXTS = ("document", "summary", "generated_summary")
_LONGEST = 1500


def examples(scored: BatchSnapshot, rows: Sequence[Mapping[str, Any]], count: int) -> dict[str, list[dict[str, Any]]]:
    """Documents with their summaries at both ends of ROUGE-1, over all batches.

    Args:
        scored: ``m4_1_batch_inference``.
        rows: rows of ``summary_quality``.
        count: how many at either end; with 0, no text is read.

    Returns:
        By title: ``batch``, ``id``, ``rouge1`` and the texts, cut, of each.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, title in _TITLES.items() if count else ():
        shown = []
        for one in _extremes(rows, scored.table.name, name, count):
            texts = _texts(scored, one["batch"], one["id"])
            # A batch that has changed since it was measured may have lost it.
            if texts is not None:
                shown.append({**one, **texts})
        if shown:
            found[title] = shown
    return found


def _extremes(rows: Iterable[Mapping[str, Any]], table: str, name: str, count: int) -> list[dict[str, Any]]:
    """Batch, id and ROUGE-1 of the summaries that a table holds at one end, over all batches."""
    of_table = last_measured(row for row in rows if row["table_name"] == table)
    found = [{"batch": row["batch"], **one} for row in of_table for one in json.loads(row[name] or "[]")]
    return sorted(found, key=lambda one: (one["rouge1"], one["id"]), reverse=name == "best")[:count]


def _texts(scored: BatchSnapshot, batch: str, document_id: str) -> dict[str, str] | None:
    for part in scored.read(batch, ["id", *_TEXTS]):
        for row in part.to_pylist():
            if row["id"] == document_id:
                return {name: _cut(row[name] or "") for name in _TEXTS}
    return None


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
