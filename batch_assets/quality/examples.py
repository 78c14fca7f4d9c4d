"""Example documents for the report: the answers nearest to their reference, and those farthest from it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from batch_assets.lake.lake import BatchSnapshot
from batch_assets.quality.batch_measures import last_measured
from batch_assets.text_template import as_text

_TITLES = {"worst": "Farthest from the ground truth", "best": "Nearest to the ground truth"}
_MAX_CHARACTERS = 1500


def examples(
    scored: BatchSnapshot, rows: Sequence[Mapping[str, Any]], score: str, count: int
) -> dict[str, list[dict[str, Any]]]:
    """Read the documents with the best and the worst score over all batches.

    Args:
        scored: the answers of the registered model.
        rows: rows of the quality table.
        score: name of the main score.
        count: number of documents at each end; with 0, no text is read.

    Returns:
        By title, a list of ``batch``, ``id``, ``score`` and the shortened texts ``document``, ``reference`` and
        ``answer``.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, title in _TITLES.items() if count else ():
        shown = []
        for extreme in _extremes(rows, scored.table.name, name, score, count):
            texts = _texts(scored, extreme["batch"], extreme["id"])
            # The batch may have changed since it was measured, and lost the document.
            if texts is not None:
                shown.append({**extreme, **texts})
        if shown:
            found[title] = shown
    return found


def _extremes(rows: Iterable[Mapping[str, Any]], table: str, name: str, score: str, count: int) -> list[dict[str, Any]]:
    """Batch, id and score of a table's best or worst answers over all batches."""
    latest = last_measured(row for row in rows if row["table_name"] == table)
    found = [
        {"batch": row["batch"], "id": extreme["id"], "score": extreme[score]}
        for row in latest
        for extreme in json.loads(row[name] or "[]")
    ]
    return sorted(found, key=lambda extreme: (extreme["score"], extreme["id"]), reverse=name == "best")[:count]


def _texts(scored: BatchSnapshot, batch: str, document_id: str) -> dict[str, str] | None:
    columns = {
        "document": "document",
        "reference": scored.table.reference_column,
        "answer": scored.table.output_column,
    }
    for part in scored.read(batch, ["id", *columns.values()]):
        for row in part.to_pylist():
            if row["id"] == document_id:
                return {name: _cut(as_text(row[column]) or "") for name, column in columns.items()}
    return None


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + " …"
