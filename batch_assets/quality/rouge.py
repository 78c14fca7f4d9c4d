"""ROUGE, and the lead baseline that a summary has to beat.

ROUGE: Lin, 2004, https://aclanthology.org/W04-1013, as the package rouge-score counts it, with stemming.
"""

import re
import unicodedata
from functools import cache
from statistics import fmean
from typing import Any

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

# Full stops of Latin, Arabic, Devanagari, Chinese and Japanese; the last two take no space after them.
_SENTENCE_END = re.compile(r"(?<=[.!?\u061f\u06d4\u0964])\s+|(?<=[\u3002\uff01\uff1f])\s*")
# A document without a full stop would be one sentence, and ROUGE-L takes time and memory by the product of two lengths.
_LONGEST_LEAD = 10_000
# Scripts that put no spaces between words: Thai, Lao, Myanmar, Khmer, Hiragana, Katakana, Han. A token is a character.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def sentences(text: str) -> list[str]:
    """Split a text after full stops, question and exclamation marks."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


def lead(document: str, count: int = 3) -> str:
    """The first sentences of a document, cut at 10,000 characters: the baseline of extractive summarization."""
    return " ".join(sentences(document)[:count])[:_LONGEST_LEAD]


class Tokenizer:
    """Words as rouge-score has them, stemmed, and those of other scripts too, which it would leave out."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        """Words in lower case; in scripts without spaces, characters."""
        return [
            # rouge-score leaves short words as they are.
            self._stemmer.stem(word) if word.isascii() and len(word) > 3 else word
            for word in self._words(unicodedata.normalize("NFC", text).lower())
        ]

    @staticmethod
    def _words(text: str) -> list[str]:
        spaced = "".join(
            f" {character} "
            if _WITHOUT_SPACES.match(character)
            # Marks are vowels in many scripts, and belong to their word.
            else character
            if character.isalnum() or unicodedata.category(character).startswith("M")
            else " "
            for character in text
        )
        return spaced.split()


@cache
def _scorer(types: tuple[str, ...]) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(types), tokenizer=Tokenizer())


def rouge(reference: str, summary: str, types: tuple[str, ...] = ROUGE_TYPES) -> dict[str, float]:
    """F-measures, from 0 to 1, of one summary against its reference, by ROUGE type."""
    # ROUGE-Lsum takes one sentence a line.
    scores = _scorer(types).score("\n".join(sentences(reference)), "\n".join(sentences(summary)))
    return {name: float(scores[name].fmeasure) for name in types}


def mean_rouge(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Mean F-measures over (reference, summary) pairs; at least one pair."""
    scores = [rouge(reference, summary) for reference, summary in pairs]
    return {name: fmean(score[name] for score in scores) for name in ROUGE_TYPES}
