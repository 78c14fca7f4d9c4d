"""Plots where people would rather look than read."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from batch_assets.quality.histograms import edges
from batch_assets.quality.markdown import as_text

# Told apart by people who see few colours, on white, which is legible on dark pages too.
# https://jfly.uni-koeln.de/color/
_BLUE, _ORANGE = "#0072b2", "#e69f00"
_COLOURS = (_BLUE, _ORANGE, "#009e73", "#cc79a7")
# Names of batches that fit below a plot.
_NAMED = 12
_FEW_BARS = 4

Scores = Mapping[str, tuple[float, float, float]]


def scores(figures: Mapping[str, Scores]) -> Any:
    """Bars of scores with their intervals.

    Args:
        figures: by system and score: mean, low, high.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, axes = _figure("score", "share, 95 % interval")
    names = list(next(iter(figures.values())))
    width = 0.8 / len(figures)
    for place, (system, values) in enumerate(figures.items()):
        at = [index + (place - (len(figures) - 1) / 2) * width for index in range(len(names))]
        _bars(axes, at, [values[name] for name in names], width * 0.9, _COLOURS[place % len(_COLOURS)], system)
    axes.set_xticks(range(len(names)), names)
    _legend(figure, axes)
    return figure


def by_version(versions: Scores, score: str, baseline: float | None) -> Any:
    """One score of each version, with its interval, beside a baseline.

    Args:
        versions: by the version's name: mean, low, high.
        score: name of the score.
        baseline: mean score of what takes no model.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, axes = _figure("version", f"{score}, 95 % interval")
    _bars(axes, list(range(len(versions))), list(versions.values()), 0.6, _BLUE, None)
    # A single bar would fill the plot.
    axes.set_xlim(-0.5, max(len(versions), _FEW_BARS) - 0.5)
    axes.set_xticks(range(len(versions)), list(versions))
    if baseline is not None:
        axes.axhline(baseline, color=_ORANGE, label="the document's first sentences")
        _legend(figure, axes)
    return figure


def distribution(values: Sequence[float], what: str) -> Any:
    """A histogram of one figure over documents.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, axes = _figure(what, "documents")
    axes.hist(values, bins=min(20, max(len(values) // 2, 3)), color=_BLUE)
    return figure


def distributions(counts: Mapping[str, Mapping[str, Sequence[int]]], titles: Mapping[str, str]) -> Any:
    """Kept histograms of several groups of summaries, one panel a figure, as shares.

    Args:
        counts: by group and figure: summaries by bin.
        titles: what each figure is called.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, panels = _panels(len(titles))
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        _label(axes, title, "share of summaries")
        filled = [place for group in counts.values() for place, count in enumerate(group[name]) if count]
        for place, (label, group) in enumerate(counts.items()):
            total = sum(group[name]) or 1
            shares = [count / total for count in group[name]]
            axes.step(edges(name), shares, where="post", color=_COLOURS[place % len(_COLOURS)], label=label)
        if filled:
            begins = [*edges(name), edges(name)[-1] * 1.2]
            axes.set_xlim(begins[max(min(filled) - 1, 0)], begins[min(max(filled) + 2, len(begins) - 1)])
    _legend(figure, panels[0])
    return figure


def over_batches(series: Mapping[str, Mapping[str, float]], what: str, order: Sequence[str]) -> Any:
    """One figure over batches, a line for each series.

    Args:
        series: by series and batch.
        what: name of the figure.
        order: of the batches; those that no series has are left out.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, axes = _figure("batch", what)
    shown = {batch for values in series.values() for batch in values}
    batches = [batch for batch in order if batch in shown]
    places = {batch: place for place, batch in enumerate(batches)}
    for number, (label, values) in enumerate(series.items()):
        at = [places[batch] for batch in values]
        axes.plot(at, list(values.values()), marker="o", color=_COLOURS[number % len(_COLOURS)], label=label)
    step = -(-len(batches) // _NAMED) or 1
    axes.set_xticks(range(0, len(batches), step), batches[::step], rotation=30, ha="right")
    axes.set_ylim(bottom=0)
    if series:
        _legend(figure, axes)
    return figure


def against(pairs: Sequence[tuple[float, float]], across: str, up: str) -> Any:
    """Scores of two systems on the same documents; above the line, the second is better.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, axes = _figure(across, up)
    axes.scatter([left for left, _ in pairs], [right for _, right in pairs], color=_BLUE, alpha=0.6)
    most = max((max(pair) for pair in pairs), default=1.0)
    axes.plot([0, most], [0, most], color=_ORANGE)
    axes.set_aspect("equal")
    return figure


def svg(figure: Any) -> str:
    """A plot as an element of an HTML page."""
    import matplotlib as mpl

    written = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "batch_assets"}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()[written.getvalue().index("<svg") :]


def image(figure: Any, title: str) -> str:
    """A plot as an image in Markdown that needs no other file."""
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=80)
    return f"![{as_text(title)}](data:image/png;base64,{base64.b64encode(written.getvalue()).decode()})"


def _bars(
    axes: Any, at: list[float], values: Sequence[tuple[float, float, float]], width: float, colour: str, label: Any
) -> None:
    means = [mean for mean, _, _ in values]
    errors = [[max(mean - low, 0) for mean, low, _ in values], [max(high - mean, 0) for mean, _, high in values]]
    axes.bar(at, means, width, yerr=errors, capsize=3, label=label, color=colour)


def _figure(across: str, up: str) -> tuple[Any, Any]:
    figure, (axes,) = _panels(1)
    _label(axes, across, up)
    return figure, axes


def _panels(count: int) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 if count == 1 else 4 * count, 3.5), layout="constrained", facecolor="white")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _legend(figure: Any, axes: Any) -> None:
    """What the colours mean, above the plot, where it covers nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)


def _label(axes: Any, across: str, up: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.spines[["top", "right"]].set_visible(False)
