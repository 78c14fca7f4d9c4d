"""Drift: how much the summaries of a batch differ from those of earlier batches.

The population stability index compares two distributions over the same bins: sum of (p - q) ln(p / q). By convention,
they are similar below 0.1 and different above 0.25. For two samples of the same distribution, the index is about
chi-square times (1 / n + 1 / m), with one degree of freedom less than bins, so small batches differ by chance.
Yurdakul, Statistical Properties of Population Stability Index, 2018, https://scholarworks.wmich.edu/dissertations/3208.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

_BINS = 10
# For each measure, one batch in a thousand is reported by chance.
_CONFIDENCE = 0.999
# Added to each bin, because an empty one has no logarithm.
_SMOOTHING = 0.5


@dataclass(frozen=True)
class Drift:
    """The population stability index of two distributions, and the highest value that chance explains."""

    index: float
    by_chance: float

    def is_over(self, threshold: float) -> bool:
        """Whether the index exceeds both the threshold and what chance explains."""
        return self.index > max(threshold, self.by_chance)


def drift(before: Sequence[int], now: Sequence[int]) -> Drift | None:
    """Compare counts in the same bins. Returns None if either side is empty.

    Args:
        before: number of summaries per bin in the earlier batches.
        now: number of summaries per bin in the batch.
    """
    if not sum(before) or not sum(now):
        return None
    pairs = _merge_bins(before, now)
    if len(pairs) < 2:
        pairs = [(sum(before), sum(now)), (0, 0)]
    totals = [sum(side) + _SMOOTHING * len(pairs) for side in zip(*pairs, strict=True)]
    shares = [((old + _SMOOTHING) / totals[0], (new + _SMOOTHING) / totals[1]) for old, new in pairs]
    index = sum((new - old) * math.log(new / old) for old, new in shares)
    return Drift(index, _chi_square(len(pairs) - 1) * (1 / sum(before) + 1 / sum(now)))


def _merge_bins(before: Sequence[int], now: Sequence[int]) -> list[tuple[int, int]]:
    """Merge neighbouring bins until each holds a tenth of the earlier summaries."""
    enough = sum(before) / _BINS
    pairs, old, new = [], 0, 0
    for place, (left, right) in enumerate(zip(before, now, strict=True)):
        old, new = old + left, new + right
        # Values at either end that only this batch has get their own bin.
        starts_next = not any(before[: place + 1]) and any(before[: place + 2])
        if old >= enough or (starts_next and new):
            pairs.append((old, new))
            old = new = 0
    if new and not old:
        pairs.append((0, new))
    elif old or new:
        last = pairs.pop() if pairs else (0, 0)
        pairs.append((last[0] + old, last[1] + new))
    return pairs


def _chi_square(freedom: int) -> float:
    """Quantile of the chi-square distribution; Wilson and Hilferty, 1931, https://doi.org/10.1073/pnas.17.12.684."""
    part = 2 / (9 * freedom)
    return float(freedom * (1 - part + NormalDist().inv_cdf(_CONFIDENCE) * math.sqrt(part)) ** 3)
