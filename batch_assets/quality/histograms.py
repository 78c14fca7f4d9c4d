"""Histograms of measures over the answers of a batch, with the same bins for all batches."""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bins:
    """The bins of a measure: what it is called, and their lower edges.

    The first bin also takes smaller values, and the last one has no upper edge. If the bins have names, which may
    change, a stored histogram has the counts by name, and one more bin counts what has none of today's names.
    """

    title: str
    edges: tuple[float, ...]
    names: tuple[str, ...] = ()

    @classmethod
    def named(cls, title: str, names: Sequence[str]) -> "Bins":
        """One bin for each name, whose place is the value, and one for all others."""
        return cls(title, tuple(float(place) for place in range(len(names) + 1)), tuple(names))

    def place(self, value: float) -> int:
        """Index of the bin that a value belongs to."""
        return max(bisect_right(self.edges, value) - 1, 0)

    def histogram(self, counts: Mapping[int, int]) -> str:
        """Serialize counts by bin for a table: a JSON list with one number per bin, or an object if they have names."""
        if self.names:
            return json.dumps({name: counts.get(place, 0) for place, name in enumerate(self.names)}, ensure_ascii=False)
        return json.dumps([counts.get(place, 0) for place in range(len(self.edges))])

    def add(self, histograms: Sequence[str]) -> list[int]:
        """Add up stored histograms, at least one."""
        stored = [json.loads(histogram) for histogram in histograms]
        if not self.names:
            return [sum(counts) for counts in zip(*stored, strict=True)]
        totals: Counter[str] = Counter()
        for counts in stored:
            totals.update(counts)
        return [*(totals[name] for name in self.names), sum(totals[name] for name in totals.keys() - {*self.names})]


def _octaves(first: int) -> tuple[float, ...]:
    """48 quarters of an octave, for measures that are compared by ratio; ``first`` is an exponent of two."""
    return tuple(2 ** (first + place / 4) for place in range(48))


TEXT_BINS = {
    "words": Bins("length", _octaves(0)),
    "compression": Bins("compression", _octaves(-3)),
    "coverage": Bins("coverage", tuple(place / 40 for place in range(40))),
}
