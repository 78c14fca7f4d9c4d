"""Plots of an evaluation, where people would rather look than read."""

from collections.abc import Mapping, Sequence
from typing import Any

# Told apart by people who see few colours, on white, which is legible on dark pages too.
# https://jfly.uni-koeln.de/color/
_BLUE, _ORANGE = "#0072b2", "#e69f00"


def scores(figures: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Any:
    """Bars of scores with their intervals.

    Args:
        figures: by system and score: mean, low, high.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, axes = _figure("Score", "share, 95 % interval")
    names = list(next(iter(figures.values())))
    width = 0.8 / len(figures)
    for place, (system, values) in enumerate(figures.items()):
        means = [values[name][0] for name in names]
        errors = [
            [max(values[name][0] - values[name][1], 0) for name in names],
            [max(values[name][2] - values[name][0], 0) for name in names],
        ]
        at = [index + (place - (len(figures) - 1) / 2) * width for index in range(len(names))]
        shade = _BLUE if place == 0 else _ORANGE
        axes.bar(
            at,
            means,
            width * 0.9,
            yerr=errors,
            capsize=3,
            label=system,
            color=shade,
            alpha=1 - 0.35 * max(place - 1, 0),
        )
    axes.set_xticks(range(len(names)), names)
    axes.legend(frameon=False)
    return figure


def distribution(values: Sequence[float], what: str) -> Any:
    """A histogram of one figure over documents.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    figure, axes = _figure(what, "documents")
    axes.hist(values, bins=min(20, max(len(values) // 2, 3)), color=_BLUE)
    return figure


def _figure(across: str, up: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
