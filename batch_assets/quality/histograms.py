"""Distributions of figures over the summaries of a batch, in bins that are the same for all batches."""

import json
import math
from collections.abc import Mapping, Sequence

# Quarters of an octave for what people compare by ratio, fortieths for a share.
_STEPS_AN_OCTAVE, _STEPS_OF_A_SHARE = 4, 40
# By figure: the number of bins, and the exponent of two that the first one begins with.
_OCTAVES = {"words": (48, 0), "compression": (48, -3)}
BINNED = (*_OCTAVES, "coverage")


def edges(name: str) -> list[float]:
    """Where each bin of a figure begins; the last one has no end, and the first takes what is less."""
    if name in _OCTAVES:
        count, first = _OCTAVES[name]
        return [2 ** (first + place / _STEPS_AN_OCTAVE) for place in range(count)]
    return [place / _STEPS_OF_A_SHARE for place in range(_STEPS_OF_A_SHARE)]


def bin_of(name: str, value: float) -> int:
    """The bin that a value belongs to."""
    if name in _OCTAVES:
        count, first = _OCTAVES[name]
        place = math.floor((math.log2(value) - first) * _STEPS_AN_OCTAVE) if value > 0 else 0
    else:
        count, place = _STEPS_OF_A_SHARE, math.floor(value * _STEPS_OF_A_SHARE)
    return min(max(place, 0), count - 1)


def histogram(name: str, counts: Mapping[int, int]) -> str:
    """Counts by bin as they are kept in a table: a JSON list, one number a bin."""
    return json.dumps([counts.get(place, 0) for place in range(len(edges(name)))])


def add(histograms: Sequence[str]) -> list[int]:
    """The sum of kept histograms of one figure, at least one."""
    return [sum(counts) for counts in zip(*(json.loads(one) for one in histograms), strict=True)]
