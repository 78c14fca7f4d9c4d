"""Whether the summaries of a batch are like those of the batches before it.

The population stability index compares two distributions over the same bins: sum of (p - q) ln(p / q). As it is usually
read, they are alike under 0.1, and not over 0.25. Of two samples of the same distribution it is about chi-square times
(1 / n + 1 / m), with one degree of freedom less than bins, so small batches differ by chance.
Yurdakul, Statistical Properties of Population Stability Index, 2018, https://scholarworks.wmich.edu/dissertations/3208.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

_BINS = 10
# One batch in a thousand is called changed by chance, for each figure.
_CONFIDENCE = 0.999
# So that an empty bin has a logarithm.
_SMOOTHING = 0.5


@dataclass(frozen=True)
class Drift:
    """How far one distribution is from another: the index, and what chance alone may make of it."""

    index: float
    by_chance: float

    def is_over(self, threshold: float) -> bool:
        """Whether the index is over a threshold, and over what chance explains."""
        return self.index > max(threshold, self.by_chance)


def drift(before: Sequence[int], now: Sequence[int]) -> Drift | None:
    """Compare counts in the same bins; None where there is nothing to compare.

    Args:
        before: summaries by bin in the batches before.
        now: summaries by bin in the batch.
    """
    if not sum(before) or not sum(now):
        return None
    pairs = _merged(before, now)
    if len(pairs) < 2:
        pairs = [(sum(before), sum(now)), (0, 0)]
    totals = [sum(side) + _SMOOTHING * len(pairs) for side in zip(*pairs, strict=True)]
    shares = [((old + _SMOOTHING) / totals[0], (new + _SMOOTHING) / totals[1]) for old, new in pairs]
    index = sum((new - old) * math.log(new / old) for old, new in shares)
    return Drift(index, _chi_square(len(pairs) - 1) * (1 / sum(before) + 1 / sum(now)))


def _merged(before: Sequence[int], now: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring bins put together until each holds a tenth of the batches before."""
    enough = sum(before) / _BINS
    pairs, old, new = [], 0, 0
    for place, (left, right) in enumerate(zip(before, now, strict=True)):
        old, new = old + left, new + right
        # What only the batch has, at either end, stands alone.
        begins = not any(before[: place + 1]) and any(before[: place + 2])
        if old >= enough or (begins and new):
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
