"""Plots for the report and the MLflow runs."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from batch_assets.quality.histograms import Bins
from batch_assets.quality.markdown import as_text

# A palette for colour-blind readers. The white background is legible on dark pages too.
# https://jfly.uni-koeln.de/color/
_BLUE, _ORANGE = "#0072b2", "#e69f00"
_COLOURS = (_BLUE, _ORANGE, "#009e73", "#cc79a7")
# Batch names that fit below a plot.
_MAX_BATCH_NAMES = 12
_MIN_BAR_SLOTS = 4

Scores = Mapping[str, tuple[float, float, float]]


def scores(figures: Mapping[str, Scores]) -> Any:
    """Bar chart of scores with their confidence intervals.

    Args:
        figures: mean, low and high by system and score.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, axes = _figure("score", "share, 95% interval")
    names = list(next(iter(figures.values())))
    width = 0.8 / len(figures)
    for place, (system, values) in enumerate(figures.items()):
        positions = [index + (place - (len(figures) - 1) / 2) * width for index in range(len(names))]
        _bars(axes, positions, [values[name] for name in names], width * 0.9, _COLOURS[place % len(_COLOURS)], system)
    axes.set_xticks(range(len(names)), names)
    _legend(figure, axes)
    return figure


def by_version(versions: Scores, score: str, baseline: float | None) -> Any:
    """Bar chart of one score by version, with confidence intervals and a baseline.

    Args:
        versions: mean, low and high by version name.
        score: name of the score.
        baseline: mean score of the baseline, None if there is none.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, axes = _figure("version", f"{score}, 95% interval")
    _bars(axes, list(range(len(versions))), list(versions.values()), 0.6, _BLUE, None)
    # A single bar would fill the plot.
    axes.set_xlim(-0.5, max(len(versions), _MIN_BAR_SLOTS) - 0.5)
    axes.set_xticks(range(len(versions)), list(versions))
    if baseline is not None:
        axes.axhline(baseline, color=_ORANGE, label="the document's first sentences")
        _legend(figure, axes)
    return figure


def distribution(values: Sequence[float], what: str) -> Any:
    """Histogram of one measure over documents.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, axes = _figure(what, "documents")
    axes.hist(values, bins=min(20, max(len(values) // 2, 3)), color=_BLUE)
    return figure


def distributions(counts: Mapping[str, Mapping[str, Sequence[int]]], bins: Mapping[str, Bins]) -> Any:
    """Stored histograms of several groups of answers as shares, one panel per measure.

    Args:
        counts: number of answers per bin, by group and measure.
        bins: the bins of each measure.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, panels = _panels(len(bins))
    for axes, (name, binned) in zip(panels, bins.items(), strict=True):
        edges = binned.edges
        _label(axes, binned.title, "share of answers")
        filled = [place for group in counts.values() for place, count in enumerate(group[name]) if count]
        for place, (label, group) in enumerate(counts.items()):
            total = sum(group[name]) or 1
            shares = [count / total for count in group[name]]
            axes.step(edges, shares, where="post", color=_COLOURS[place % len(_COLOURS)], label=label)
        if filled:
            limits = [*edges, edges[-1] * 1.2]
            axes.set_xlim(limits[max(min(filled) - 1, 0)], limits[min(max(filled) + 2, len(limits) - 1)])
    _legend(figure, panels[0])
    return figure


def over_batches(series: Mapping[str, Mapping[str, float]], what: str, order: Sequence[str]) -> Any:
    """Line chart of one measure over batches, one line per series.

    Args:
        series: values by series and batch.
        what: name of the measure.
        order: order of the batches; those without a value are skipped.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, axes = _figure("batch", what)
    shown = {batch for values in series.values() for batch in values}
    batches = [batch for batch in order if batch in shown]
    places = {batch: place for place, batch in enumerate(batches)}
    for number, (label, values) in enumerate(series.items()):
        positions = [places[batch] for batch in values]
        axes.plot(positions, list(values.values()), marker="o", color=_COLOURS[number % len(_COLOURS)], label=label)
    step = -(-len(batches) // _MAX_BATCH_NAMES) or 1
    axes.set_xticks(range(0, len(batches), step), batches[::step], rotation=30, ha="right")
    axes.set_ylim(bottom=0)
    if series:
        _legend(figure, axes)
    return figure


def against(pairs: Sequence[tuple[float, float]], across: str, up: str) -> Any:
    """Scatter plot of two systems' scores on the same documents. Above the line, the second one is better.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, axes = _figure(across, up)
    axes.scatter([left for left, _ in pairs], [right for _, right in pairs], color=_BLUE, alpha=0.6)
    highest = max((max(pair) for pair in pairs), default=1.0)
    axes.plot([0, highest], [0, highest], color=_ORANGE)
    axes.set_aspect("equal")
    return figure


def svg(figure: Any) -> str:
    """Render a plot as an element of an HTML page."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "batch_assets"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    # The layout is computed once, which takes as long as the drawing: another rendering keeps it.
    figure.set_layout_engine("none")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def image(figure: Any, title: str) -> str:
    """Render a plot as a Markdown image with embedded data."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return f"![{as_text(title)}](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"


def _bars(
    axes: Any, x: list[float], values: Sequence[tuple[float, float, float]], width: float, colour: str, label: Any
) -> None:
    means = [mean for mean, _, _ in values]
    errors = [[max(mean - low, 0) for mean, low, _ in values], [max(high - mean, 0) for mean, _, high in values]]
    axes.bar(x, means, width, yerr=errors, capsize=3, label=label, color=colour)


def _figure(x_label: str, y_label: str) -> tuple[Any, Any]:
    figure, (axes,) = _panels(1)
    _label(axes, x_label, y_label)
    return figure, axes


def _panels(count: int) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 if count == 1 else 4 * count, 3.5), layout="constrained", facecolor="white")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _legend(figure: Any, axes: Any) -> None:
    """Add a legend above the plot, where it covers nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)


def _label(axes: Any, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
