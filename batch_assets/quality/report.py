"""The report over all batches: what each table and model version came to."""

from collections.abc import Iterable, Mapping
from typing import Any

_COLUMNS = (
    ("table", "table_name"),
    ("model", "model_name"),
    ("version", "model_version"),
    ("batches", "batches"),
    ("documents", "documents"),
    ("summaries", "summaries"),
    ("errors", "errors"),
    ("ROUGE-1", "rouge1"),
    ("ROUGE-2", "rouge2"),
    ("ROUGE-L", "rougeL"),
    ("lead-3 ROUGE-1", "lead_rouge1"),
    ("words", "words"),
    ("compression", "compression"),
    ("novel bigrams", "novel_bigrams"),
)
_WEIGHTED_BY_REFERENCES = ("rouge1", "rouge2", "rougeL", "lead_rouge1")
_WEIGHTED_BY_SUMMARIES = ("words", "compression", "novel_bigrams")


def totals(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sum rows of ``summary_quality`` up over batches, one row for each table and model version.

    Means are weighted by the number of summaries that they were taken over.
    """
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["table_name"], row["model_name"], row["model_version"] or "")
        groups.setdefault(key, []).append(row)
    result = []
    for (table, model, version), group in sorted(groups.items()):
        total: dict[str, Any] = {"table_name": table, "model_name": model, "model_version": version}
        total["batches"] = len({row["batch"] for row in group})
        for name in ("documents", "summaries", "errors"):
            total[name] = sum(row[name] for row in group)
        for names, weight in ((_WEIGHTED_BY_REFERENCES, "references"), (_WEIGHTED_BY_SUMMARIES, "summaries")):
            for name in names:
                total[name] = _mean([(row[name], row[weight]) for row in group if row[name] is not None])
        result.append(total)
    return result


def _mean(weighted: list[tuple[float, int]]) -> float | None:
    weight = sum(count for _, count in weighted)
    return sum(value * count for value, count in weighted) / weight if weight else None


def markdown(rows: list[dict[str, Any]]) -> str:
    """Totals as a Markdown table."""
    lines = [
        "| " + " | ".join(title for title, _ in _COLUMNS) + " |",
        "|" + " --- |" * len(_COLUMNS),
    ]
    lines += ["| " + " | ".join(_cell(row[name]) for _, name in _COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
