"""Confidence intervals for means over a few documents.

Percentile bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; for comparing two
systems on the same documents: Koehn, 2004, https://aclanthology.org/W04-3250.
"""

from collections.abc import Sequence

_RESAMPLES = 2000
_SEED = 0


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Compute a confidence interval of the mean. The same values always give the same interval.

    Args:
        values: one value per document, at least one. To compare two systems, pass their differences per document.
        confidence: share of resamples whose mean lies inside the interval.
    """
    import numpy as np

    resampled = np.random.default_rng(_SEED).choice(np.asarray(values, float), (_RESAMPLES, len(values)))
    low, high = np.quantile(resampled.mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
