"""How far figures of a few documents can be trusted.

Percentile bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; for comparing two
systems on the same documents: Koehn, 2004, https://aclanthology.org/W04-3250.
"""

from collections.abc import Sequence

_RESAMPLES = 2000
_SEED = 0


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The interval that holds the mean with some confidence; the same every time for the same values.

    Args:
        values: one figure a document, at least one. Of two systems, their differences document by document.
        confidence: share of resamples whose mean lies inside.
    """
    import numpy as np

    drawn = np.random.default_rng(_SEED).choice(np.asarray(values, float), (_RESAMPLES, len(values)))
    low, high = np.quantile(drawn.mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
