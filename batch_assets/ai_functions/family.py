"""The family of ``ai_query``: how each function builds its request and reads the answer.

https://docs.databricks.com/en/large-language-models/ai-functions.html
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from batch_assets.ai_functions.requests import AiFunctionError, Request

_SENTIMENTS = ("positive", "negative", "neutral", "mixed")
_MAX_LABELS = 20


@dataclass(frozen=True)
class AiFunction:
    """One function of the family.

    Args:
        name: name in SQL.
        parameters: names of the parameters in SQL, in order.
        ask: builds the request from a row's arguments.
        read: converts the answer to the result.
        optional: number of parameters at the end that are optional.
    """

    name: str
    parameters: tuple[str, ...]
    ask: Callable[..., Request]
    read: Callable[[str], Any] = str.strip
    optional: int = 0


def _plain(instruction: str, content: str) -> Request:
    return Request(f"{instruction}\n\n{content}")


def _gen(prompt: str) -> Request:
    return Request(prompt)


def _summarize(content: str, max_words: int = 50) -> Request:
    if max_words < 0:
        raise AiFunctionError(f"ai_summarize: max_words must be 0 (no limit) or more, but is {max_words}")
    limit = f" in at most {max_words} words" if max_words else ""
    return _plain(f"Summarize the following text{limit}. Answer with the summary alone.", content)


def _choice(instruction: str, content: str, choices: Sequence[str]) -> Request:
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": list(choices)}},
        "required": ["label"],
        "additionalProperties": False,
    }
    return Request(f"{instruction}\n\n{content}", schema=json.dumps(schema))


def _label(text: str) -> str:
    return str(json.loads(text)["label"])


def _classify(content: str, labels: Sequence[str]) -> Request:
    labels = check_labels("ai_classify", labels, at_least=2)
    return _choice(f"Which of these labels fits the following text best: {', '.join(labels)}?", content, labels)


def _sentiment(content: str) -> Request:
    question = f"What is the sentiment of the following text: {', '.join(_SENTIMENTS)}?"
    return _choice(question, content, _SENTIMENTS)


def _extract(content: str, labels: Sequence[str]) -> Request:
    labels = check_labels("ai_extract", labels)
    schema = {
        "type": "object",
        "properties": {label: {"type": ["string", "null"]} for label in labels},
        "required": list(labels),
        "additionalProperties": False,
    }
    instruction = (
        f"Find these in the following text, as it words them, null for what it doesn't name: {', '.join(labels)}."
    )
    return Request(f"{instruction}\n\n{content}", schema=json.dumps(schema))


def _mask(content: str, labels: Sequence[str]) -> Request:
    labels = check_labels("ai_mask", labels)
    instruction = f"Replace each of these in the following text by [MASKED]: {', '.join(labels)}."
    return _plain(f"{instruction} Change nothing else, and answer with the text alone.", content)


def _translate(content: str, to_lang: str) -> Request:
    return _plain(
        f"Translate the following text into the language {to_lang}. Answer with the translation alone.", content
    )


def _fix_grammar(content: str) -> Request:
    return _plain("Correct the grammar of the following text. Answer with the corrected text alone.", content)


def check_labels(function: str, labels: Sequence[str], at_least: int = 1) -> list[str]:
    """Return the labels of a call as a list.

    Raises:
        AiFunctionError: there are too few or too many labels, or one is empty, null or repeated.
    """
    if not at_least <= len(labels) <= _MAX_LABELS:
        raise AiFunctionError(f"{function}: got {len(labels)} labels, but takes {at_least} to {_MAX_LABELS}")
    if not all(labels) or len(set(labels)) != len(labels):
        raise AiFunctionError(f"{function}: labels must be different and not empty, but are {list(labels)}")
    return list(labels)


# Without ai_query, whose result type depends on its arguments.
FAMILY = {
    function.name: function
    for function in (
        AiFunction("ai_summarize", ("content", "max_words"), _summarize, optional=1),
        AiFunction("ai_gen", ("prompt",), _gen),
        AiFunction("ai_classify", ("content", "labels"), _classify, _label),
        AiFunction("ai_extract", ("content", "labels"), _extract, json.loads),
        AiFunction("ai_translate", ("content", "to_lang"), _translate),
        AiFunction("ai_fix_grammar", ("content",), _fix_grammar),
        AiFunction("ai_analyze_sentiment", ("content",), _sentiment, _label),
        AiFunction("ai_mask", ("content", "labels"), _mask),
    )
}
