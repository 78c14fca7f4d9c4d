"""The report over all batches: the results of each table and model version, on one self-contained page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batch_assets.quality import plots
from batch_assets.quality.figures import Figure, Measurement
from batch_assets.quality.histograms import Bins
from batch_assets.quality.markdown import markdown_table

_COUNTS = ("documents", "summaries", "errors")
# Figures that would make the tables too wide; they are in the quality table.
_NOT_SHOWN = {"rougeLsum", "coverage", "density", "repetition"}
# Limits that keep the page readable.
_MAX_BATCHES, _MAX_LINES = 200, 4


@dataclass(frozen=True)
class Facts:
    """The content of a report.

    Args:
        model: name of the registered model.
        task: says what was measured.
        words: what an answer and several answers are called.
        rows: rows of the quality table, ordered by batch.
        overall: scores of all answers together.
        confusions: counts by reference and answer.
        versions: rows of ``models.overview.overview()``.
        no_text: number of documents without text, by table.
        score: name of the main score on held-out documents.
        scores: mean, low and high of the main score, by version.
        baseline: main score of the baseline.
        compared: names of two versions.
        pairs: their scores on the same documents.
        rates: documents per second, by batch.
        links: URLs by title.
        failing: the problems of bad batches, by check and batch.
    """

    model: str
    task: Measurement
    words: tuple[str, str]
    rows: Sequence[Mapping[str, Any]]
    overall: Mapping[str, float]
    confusions: Mapping[tuple[str, str], int]
    versions: Sequence[Mapping[str, str]]
    no_text: Mapping[str, int]
    score: str
    scores: Mapping[str, tuple[float, float, float]]
    baseline: float | None
    compared: tuple[str, str] | None
    pairs: Sequence[tuple[float, float]]
    rates: Mapping[str, float]
    links: Mapping[str, str]
    failing: Mapping[str, Mapping[str, str]]


def shown_figures(task: Measurement) -> list[Figure]:
    """The figures that reports show."""
    return [figure for figure in task.figures if figure.name not in _NOT_SHOWN]


def totals(rows: Iterable[Mapping[str, Any]], task: Measurement) -> list[dict[str, Any]]:
    """Total the rows of the quality table over batches, one row for each table and model version.

    Means are weighted by their number of answers, or of answers with a reference.
    """
    result = []
    for (table, model, version), group in sorted(_by_version(rows).items()):
        total: dict[str, Any] = {"table_name": table, "model_name": model, "model_version": version}
        total["batches"] = len({row["batch"] for row in group})
        for name in _COUNTS:
            total[name] = sum(row[name] for row in group)
        for figure in shown_figures(task):
            weight = "references" if figure.needs_reference else "summaries"
            weighted = [(row[figure.name], row[weight]) for row in group if row[figure.name] is not None]
            total[figure.name] = _mean(weighted)
        result.append(total)
    return result


def draw(facts: Facts) -> dict[str, Any]:
    """Draw the plots of a report, by title."""
    groups = _by_version(facts.rows)
    order = list(dict.fromkeys(row["batch"] for row in facts.rows))
    figures: dict[str, Any] = {}
    if facts.scores:
        figures["Versions on held-out documents"] = plots.by_version(
            facts.scores, facts.task.main_score, facts.baseline
        )
    if facts.compared and facts.pairs:
        title = f"{facts.compared[1]} against {facts.compared[0]}, one point per document"
        figures[title] = plots.against(facts.pairs, *(f"{facts.score}, {name}" for name in facts.compared))
    newest = dict(list(groups.items())[-_MAX_LINES:])
    histograms = {
        _label(key): {
            name: bins.add([row[f"{name}_histogram"] for row in group]) for name, bins in _drawn(facts.task).items()
        }
        for key, group in newest.items()
    }
    if histograms and _drawn(facts.task):
        drawn = _drawn(facts.task)
        title = " and ".join(bins.title for bins in drawn.values()).capitalize()
        figures[title] = plots.distributions(histograms, drawn)
    by_batch = {facts.task.main_score, "compression"}
    for name, title in ((figure.name, figure.title) for figure in facts.task.figures if figure.name in by_batch):
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
    columns = _columns(facts.task, facts.words[1])
    of_batches = [("batch", "batch"), *(column for column in columns if column[1] != "batches")]
    given = sorted({answer for _, answer in facts.confusions})
    confusions = [
        (reference, [facts.confusions.get((reference, answer), 0) for answer in given])
        for reference in sorted({reference for reference, _ in facts.confusions})
    ]
    return environment.get_template("report.html.j2").render(
        model=facts.model,
        answer=facts.words[0],
        answers=facts.words[1],
        score=_title_of(facts.task),
        confusions={"answers": given, "rows": confusions} if confusions else None,
        overall=facts.overall,
        batches=len({row["batch"] for row in facts.rows}),
        written=f"{now:%Y-%m-%d %H:%M} UTC",
        links=facts.links,
        failing=facts.failing,
        totals_columns=[title for title, _ in columns],
        no_text=facts.no_text,
        totals=[[_cell(row[name]) for _, name in columns] for row in totals(facts.rows, facts.task)],
        plots={title: plots.svg(figure) for title, figure in figures.items()},
        versions=facts.versions,
        examples=examples,
        batch_columns=[title for title, _ in of_batches],
        newest=[[_cell(row[name]) for _, name in of_batches] for row in newest],
    )


def markdown(rows: list[dict[str, Any]], task: Measurement, answers: str) -> str:
    """Format totals as a Markdown table; ``answers`` is what answers are called."""
    columns = _columns(task, answers)
    return markdown_table([title for title, _ in columns], [[_cell(row[name]) for _, name in columns] for row in rows])


def _columns(task: Measurement, answers: str) -> list[tuple[str, str]]:
    """Titles and names of the columns of the totals."""
    first = [("table", "table_name"), ("model", "model_name"), ("version", "model_version"), ("batches", "batches")]
    counts = [("documents", "documents"), (answers, "summaries"), ("errors", "errors")]
    return [*first, *counts, *((figure.title, figure.name) for figure in shown_figures(task))]


def _title_of(task: Measurement) -> str:
    """The title of the main score."""
    return next((figure.title for figure in task.figures if figure.name == task.main_score), task.main_score)


def _drawn(task: Measurement) -> Mapping[str, Bins]:
    """The histograms that the report draws."""
    return {name: bins for name, bins in task.binned.items() if name not in _NOT_SHOWN}


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
