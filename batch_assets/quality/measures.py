"""Reference-free measures of a summary.

Coverage, density and compression: Grusky et al., 2018, https://aclanthology.org/N18-1065, section 4.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from batch_assets.text import has_text

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NAME = re.compile(r"(?<=[\w,;:)] )[A-Z\u00c0-\u00de]\w+")


@dataclass(frozen=True)
class Measures:
    """Measures of one summary.

    ``words`` counts the summary's words, ``compression`` divides the document's words by them; ``coverage``,
    ``novel_bigrams`` and ``repetition`` are shares from 0 to 1.
    """

    words: int
    compression: float
    coverage: float
    density: float
    novel_bigrams: float
    repetition: float


def words(text: str) -> list[str]:
    """Split a text into lower-case words."""
    return _WORD.findall(text.lower())


def measure(document: str, summary: str) -> Measures | None:
    """Measure one summary. Returns None if it has no words."""
    source, target = words(document), words(summary)
    if not target:
        return None
    fragments = _fragments(source, target)
    bigrams, trigrams = _ngrams(target, 2), _ngrams(target, 3)
    known = set(_ngrams(source, 2))
    return Measures(
        words=len(target),
        compression=len(source) / len(target),
        coverage=sum(fragments) / len(target),
        density=sum(length * length for length in fragments) / len(target),
        novel_bigrams=sum(gram not in known for gram in bigrams) / len(bigrams) if bigrams else 0.0,
        repetition=1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0,
    )


def number_precision(document: str, summary: str) -> float | None:
    """Share of the summary's numbers that occur in the document. None if it has no numbers."""
    return _precision(_NUMBER.findall(document), _NUMBER.findall(summary))


def name_precision(document: str, summary: str) -> float | None:
    """Share of the summary's names that occur in the document. None if it has no names.

    A name is a capitalized word that does not start a sentence.
    """
    return _precision(re.findall(r"\w+", document), _NAME.findall(summary))


def _precision(known: list[str], found: list[str]) -> float | None:
    expected = set(known)
    return sum(item in expected for item in found) / len(found) if found else None


def _ngrams(tokens: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]


def _fragments(source: list[str], target: list[str]) -> list[int]:
    """Lengths of the extractive fragments: the longest runs of words shared with the document, matched greedily."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(source):
        places.setdefault(word, []).append(place)
    lengths = []
    start = 0
    while start < len(target):
        longest = 0
        for place in places.get(target[start], ()):
            length = 0
            while (
                start + length < len(target)
                and place + length < len(source)
                and target[start + length] == source[place + length]
            ):
                length += 1
            longest = max(longest, length)
        if longest:
            lengths.append(longest)
        start += max(longest, 1)
    return lengths


@cache
def measure_names() -> tuple[str, ...]:
    """Names of the measures, in order."""
    return tuple(Measures.__dataclass_fields__)


def per_document(document: str, reference: str | None, summary: str) -> dict[str, Any]:
    """Compute all measures of one summary. Those that can't be computed are None."""
    from batch_assets.quality.rouge import ROUGE_TYPES, lead, rouge

    measured = measure(document, summary)
    figures: dict[str, Any] = {name: getattr(measured, name, None) for name in measure_names()}
    scores = rouge(reference, summary) if has_text(reference) else {}
    figures |= {name: scores.get(name) for name in ROUGE_TYPES}
    figures["lead_rouge1"] = rouge(reference, lead(document), ("rouge1",))["rouge1"] if has_text(reference) else None
    return figures
