"""ROUGE, and the lead baseline that a summary should beat.

ROUGE: Lin, 2004, https://aclanthology.org/W04-1013, computed like the package rouge-score, with stemming.
"""

import re
import unicodedata
from functools import cache
from typing import Any

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

# Sentence ends of Latin, Arabic, Devanagari, Chinese and Japanese; no space follows the last two.
_SENTENCE_END = re.compile(r"(?<=[.!?\u061f\u06d4\u0964])\s+|(?<=[\u3002\uff01\uff1f])\s*")
# A document without a full stop is one sentence, and the cost of ROUGE-L is the product of both lengths.
_MAX_LEAD_CHARACTERS = 10_000
# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, Hiragana, Katakana, Han. Each character is a token.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def sentences(text: str) -> list[str]:
    """Split a text after full stops, question marks and exclamation marks."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


def lead(document: str, count: int = 3) -> str:
    """The first sentences of a document, cut at 10,000 characters: the baseline of extractive summarization."""
    return " ".join(sentences(document)[:count])[:_MAX_LEAD_CHARACTERS]


class Tokenizer:
    """The tokens of rouge-score, with stemming, plus those of other scripts, which rouge-score drops."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        """Split a text into lower-case words; in scripts without spaces, into characters."""
        return [
            # rouge-score does not stem short words.
            self._stemmer.stem(word) if word.isascii() and len(word) > 3 else word
            for word in self._words(unicodedata.normalize("NFC", text).lower())
        ]

    @staticmethod
    def _words(text: str) -> list[str]:
        spaced = "".join(
            f" {character} "
            if _WITHOUT_SPACES.match(character)
            # In many scripts, marks are vowels and belong to the word.
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
    """F-measures of one summary against its reference, from 0 to 1, by ROUGE type."""
    # ROUGE-Lsum expects one sentence per line.
    scores = _scorer(types).score("\n".join(sentences(reference)), "\n".join(sentences(summary)))
    return {name: float(scores[name].fmeasure) for name in types}
