"""The report over all batches: the results of each table and model version, on one self-contained page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batch_assets.quality import plots
from batch_assets.quality.histograms import add
from batch_assets.quality.markdown import markdown_table

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
_BATCH_COLUMNS = (("batch", "batch"), *(column for column in _COLUMNS if column[0] != "batches"))
_WEIGHTED_BY_REFERENCES = ("rouge1", "rouge2", "rougeL", "lead_rouge1")
_WEIGHTED_BY_SUMMARIES = ("words", "compression", "novel_bigrams")
_DISTRIBUTIONS = {"words": "words per summary", "compression": "document words per summary word"}
# Limits that keep the page readable.
_MAX_BATCHES, _MAX_LINES = 200, 4


@dataclass(frozen=True)
class Facts:
    """The content of a report.

    Args:
        model: name of the registered model.
        rows: rows of ``summary_quality``, ordered by batch.
        versions: rows of ``models.overview.overview()``.
        no_text: number of documents without text, by table.
        score: name of the main score.
        scores: mean, low and high of the main score, by version.
        baseline: main score of the baseline.
        compared: names of two versions.
        pairs: their scores on the same documents.
        rates: documents per second, by batch.
        links: URLs by title.
    """

    model: str
    rows: Sequence[Mapping[str, Any]]
    versions: Sequence[Mapping[str, str]]
    no_text: Mapping[str, int]
    score: str
    scores: Mapping[str, tuple[float, float, float]]
    baseline: float | None
    compared: tuple[str, str] | None
    pairs: Sequence[tuple[float, float]]
    rates: Mapping[str, float]
    links: Mapping[str, str]


def totals(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Total the rows of ``summary_quality`` over batches, one row for each table and model version.

    Means are weighted by their number of summaries.
    """
    result = []
    for (table, model, version), group in sorted(_by_version(rows).items()):
        total: dict[str, Any] = {"table_name": table, "model_name": model, "model_version": version}
        total["batches"] = len({row["batch"] for row in group})
        for name in ("documents", "summaries", "errors"):
            total[name] = sum(row[name] for row in group)
        for names, weight in ((_WEIGHTED_BY_REFERENCES, "references"), (_WEIGHTED_BY_SUMMARIES, "summaries")):
            for name in names:
                total[name] = _mean([(row[name], row[weight]) for row in group if row[name] is not None])
        result.append(total)
    return result


def draw(facts: Facts) -> dict[str, Any]:
    """Draw the plots of a report, by title."""
    groups = _by_version(facts.rows)
    order = list(dict.fromkeys(row["batch"] for row in facts.rows))
    figures: dict[str, Any] = {}
    if facts.scores:
        figures["Versions on held-out documents"] = plots.by_version(facts.scores, facts.score, facts.baseline)
    if facts.compared and facts.pairs:
        title = f"{facts.compared[1]} against {facts.compared[0]}, one point per document"
        figures[title] = plots.against(facts.pairs, *(f"{facts.score}, {name}" for name in facts.compared))
    newest = dict(list(groups.items())[-_MAX_LINES:])
    histograms = {
        _label(key): {name: add([row[f"{name}_histogram"] for row in group]) for name in _DISTRIBUTIONS}
        for key, group in newest.items()
    }
    if histograms:
        figures["Length and compression"] = plots.distributions(histograms, _DISTRIBUTIONS)
    for name, title in (("rouge1", "ROUGE-1"), ("compression", "compression")):
        series = {
            _label(key): {row["batch"]: row[name] for row in group[-_MAX_BATCHES:] if row[name] is not None}
            for key, group in newest.items()
        }
        series = {label: values for label, values in series.items() if values}
        if series:
            figures[f"{title} by batch"] = plots.over_batches(series, f"mean {title}", order)
    if facts.rates:
        figures["Throughput by batch"] = plots.over_batches({"scoring": facts.rates}, "documents per second", order)
    return figures


def page(
    facts: Facts, figures: Mapping[str, Any], examples: Mapping[str, Sequence[Mapping[str, Any]]], now: datetime
) -> str:
    """Render the report as HTML.

    Args:
        facts: content of the report.
        figures: its plots by title, from ``draw()``.
        examples: documents with their summaries by title; markup in them is escaped.
        now: time shown in the report.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("batch_assets.quality", "."), autoescape=True, undefined=StrictUndefined
    )
    newest = list(facts.rows)[-_MAX_BATCHES:][::-1]
    return environment.get_template("report.html.j2").render(
        model=facts.model,
        batches=len({row["batch"] for row in facts.rows}),
        written=f"{now:%Y-%m-%d %H:%M} UTC",
        links=facts.links,
        totals_columns=[title for title, _ in _COLUMNS],
        no_text=facts.no_text,
        totals=[[_cell(row[name]) for _, name in _COLUMNS] for row in totals(facts.rows)],
        plots={title: plots.svg(figure) for title, figure in figures.items()},
        versions=facts.versions,
        examples=examples,
        batch_columns=[title for title, _ in _BATCH_COLUMNS],
        newest=[[_cell(row[name]) for _, name in _BATCH_COLUMNS] for row in newest],
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format totals as a Markdown table."""
    return markdown_table(
        [title for title, _ in _COLUMNS], [[_cell(row[name]) for _, name in _COLUMNS] for row in rows]
    )


def _by_version(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["table_name"], row["model_name"], row["model_version"] or ""), []).append(row)
    return groups


def _label(key: tuple[str, str, str]) -> str:
    table, model, version = key
    return f"{model.rsplit('.', 1)[-1]} {version}" if version else f"{model} ({table})"


def _mean(weighted: list[tuple[float, int]]) -> float | None:
    weight = sum(count for _, count in weighted)
    return sum(value * count for value, count in weighted) / weight if weight else None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
