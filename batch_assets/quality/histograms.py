"""Histograms of measures over the answers of a batch, with the same bins for all batches."""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bins:
    """The bins of a measure: what it is called, and their lower edges.

    The first bin also takes smaller values, and the last one has no upper edge.
    """

    title: str
    edges: tuple[float, ...]

    def place(self, value: float) -> int:
        """Index of the bin that a value belongs to."""
        return max(bisect_right(self.edges, value) - 1, 0)

    def histogram(self, counts: Mapping[int, int]) -> str:
        """Serialize counts by bin for a table: a JSON list with one number per bin."""
        return json.dumps([counts.get(place, 0) for place in range(len(self.edges))])


def _octaves(first: int) -> tuple[float, ...]:
    """48 quarters of an octave, for measures that are compared by ratio; ``first`` is an exponent of two."""
    return tuple(2 ** (first + place / 4) for place in range(48))


TEXT_BINS = {
    "words": Bins("length", _octaves(0)),
    "compression": Bins("compression", _octaves(-3)),
    "coverage": Bins("coverage", tuple(place / 40 for place in range(40))),
}


def add(histograms: Sequence[str]) -> list[int]:
    """Add up stored histograms of one measure, at least one."""
    return [sum(counts) for counts in zip(*(json.loads(stored) for stored in histograms), strict=True)]
