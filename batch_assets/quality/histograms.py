"""Histograms of measures over the summaries of a batch, with the same bins for all batches."""

import json
import math
from collections.abc import Mapping, Sequence

# Quarters of an octave for measures that are compared by ratio, fortieths for shares.
_BINS_PER_OCTAVE, _SHARE_BINS = 4, 40
# By measure: the number of bins, and the lower edge of the first one as an exponent of two.
_OCTAVES = {"words": (48, 0), "compression": (48, -3)}
BINNED = (*_OCTAVES, "coverage")


def edges(name: str) -> list[float]:
    """Lower edges of a measure's bins. The first bin also takes smaller values; the last one has no upper edge."""
    if name in _OCTAVES:
        count, first = _OCTAVES[name]
        return [2 ** (first + place / _BINS_PER_OCTAVE) for place in range(count)]
    return [place / _SHARE_BINS for place in range(_SHARE_BINS)]


def bin_of(name: str, value: float) -> int:
    """Index of the bin that a value belongs to."""
    if name in _OCTAVES:
        count, first = _OCTAVES[name]
        place = math.floor((math.log2(value) - first) * _BINS_PER_OCTAVE) if value > 0 else 0
    else:
        count, place = _SHARE_BINS, math.floor(value * _SHARE_BINS)
    return min(max(place, 0), count - 1)


def histogram(name: str, counts: Mapping[int, int]) -> str:
    """Serialize counts by bin for a table: a JSON list with one number per bin."""
    return json.dumps([counts.get(place, 0) for place in range(len(edges(name)))])


def add(histograms: Sequence[str]) -> list[int]:
    """Add up stored histograms of one measure, at least one."""
    return [sum(counts) for counts in zip(*(json.loads(stored) for stored in histograms), strict=True)]
