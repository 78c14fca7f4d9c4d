"""ROUGE, and the lead baseline that a summary has to beat.

ROUGE: Lin, 2004, https://aclanthology.org/W04-1013, as the package rouge-score counts it, with stemming.
"""

import re
from functools import cache
from statistics import fmean
from typing import Any

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def sentences(text: str) -> list[str]:
    """Split a text after full stops, question and exclamation marks."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


def lead(document: str, count: int = 3) -> str:
    """The first sentences of a document: the baseline of extractive summarization."""
    return " ".join(sentences(document)[:count])


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE_TYPES), use_stemmer=True)


def rouge(reference: str, summary: str) -> dict[str, float]:
    """F-measures, from 0 to 1, of one summary against its reference, by ROUGE type."""
    # ROUGE-Lsum takes one sentence a line.
    scores = _scorer().score("\n".join(sentences(reference)), "\n".join(sentences(summary)))
    return {name: float(scores[name].fmeasure) for name in ROUGE_TYPES}


def mean_rouge(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Mean F-measures over (reference, summary) pairs; at least one pair."""
    scores = [rouge(reference, summary) for reference, summary in pairs]
    return {name: fmean(score[name] for score in scores) for name in ROUGE_TYPES}
