"""The interface of engines: the model, the completion of one request, and the errors of a row."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol

# A batch whose rows all fail is not committed if there are at least this many: the rows are probably not the cause.
SYSTEMIC_ERRORS = 5


class RowError(StrEnum):
    """Why a document has no answer. Braces mark values that depend on the case."""

    NO_TEXT = "the document has no text"
    WORKER_DIED = "the worker process died over this document"
    MARKUP = "the document has text that the tokenizer takes for markup of the prompt"
    LONG_PROMPT = "the prompt alone is longer than the {tokens} tokens the model takes"
    FAILED = "{type}: {error}"


class ErrorClass(StrEnum):
    """What caused the error of a row, which decides when the row is requested again."""

    DOCUMENT = "document"
    """The document can't be encoded, its content is refused, or it kills the worker: never for the same request."""

    MODEL = "model"
    """The answer is outside the labels or the schema: once the model, the prompt or the parameters have changed."""

    SERVICE = "service"
    """A time-out, an outage, a quota, or unknown: after a while, a limited number of times."""


# The classes of errors that the same request would get again.
FINAL_ERRORS = frozenset({ErrorClass.DOCUMENT, ErrorClass.MODEL})


@dataclass(frozen=True)
class Score:
    """A score of an answer against the answer that a person gave: its name, and how to compute it."""

    name: str
    of: Callable[[str, str, str], float]


@dataclass(frozen=True)
class Completion:
    """The outcome of one request to a model: a text or an error.

    Args:
        text: None if and only if ``error_message`` is set.
        error_message: why there is no text.
        error_class: what caused the error; None without an error, and for errors that earlier releases stored.
        finish_reason: ``stop``, or ``length`` if the answer was cut.
        input_tokens: tokens of the request, counted by the model's tokenizer or by the endpoint.
        output_tokens: tokens of the answer, without end markers.
        input_truncated: whether the document was cut; None if unknown.
        model: the registered model, or the model that the endpoint names.
        model_version: its version; None for an endpoint.
        seconds: duration of the last attempt.
        request_hash: SHA-256 of the request; empty until the completion is stored.
        completed_at: when the completion was stored.
        attempts: how often this request ended in a service error; an outage of the whole service doesn't count.
    """

    text: str | None
    error_message: str | None = None
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_truncated: bool | None = None
    model: str | None = None
    model_version: int | None = None
    seconds: float | None = None
    request_hash: str = ""
    completed_at: datetime | None = None
    error_class: str | None = None
    attempts: int | None = None

    @classmethod
    def failed(cls, message: str, error_class: ErrorClass, *, attempts: int = 1, **details: Any) -> "Completion":
        """A request without an answer; ``attempts`` is how many times a service error counts, 0 for an outage."""
        counted = attempts if error_class is ErrorClass.SERVICE else None
        return cls(None, message, error_class=error_class, attempts=counted, **details)

    @property
    def is_finished(self) -> bool:
        """Whether the same request would get the same answer, or the same error, again."""
        return self.error_message is None or self.error_class in FINAL_ERRORS


@dataclass(frozen=True)
class ScoringModel:
    """A registered version, as workers need it.

    Args:
        name: name of the registered model.
        version: version number.
        digest: SHA-256 of weights, tokenizer, configuration and template.
        path: local folder of the MLflow model.
        parameters: generation parameters logged with the model.
        template: format string with ``{prompt}`` for the document, None for an encoder-decoder.
        engine: name of the engine.
        dtype: precision of the engine.
        seed: seed of the sampling.
        markup: texts that the tokenizer treats as markup.
        device_map: device that the model runs on, or ``auto``.
        batch_tokens: padded input tokens per batch.
        engine_path: folder of the model converted for the engine, empty if there is none.
        uri: URI of ``path`` in the artifact store.
        engine_uri: URI of ``engine_path`` in the artifact store.
        engine_reason: why this engine was chosen.
        read: the answer in a text that the model wrote; raises a ValueError if there is none.
        rules: what decides which texts are answers.
    """

    name: str
    version: int
    digest: str
    path: str
    parameters: Mapping[str, Any] = field(hash=False)
    template: str | None
    engine: str
    dtype: str
    seed: int
    markup: tuple[str, ...] = ()
    device_map: str = "auto"
    batch_tokens: int = 4096
    engine_path: str = ""
    uri: str = ""
    engine_uri: str = ""
    engine_reason: str = ""
    read: Callable[[str], str] | None = field(default=None, compare=False)
    rules: str = ""

    def checked(self, completion: Completion) -> Completion:
        """The completion with its answer in place of the text, or with an error if the text is no answer."""
        if completion.text is None or self.read is None:
            return completion
        try:
            return replace(completion, text=self.read(completion.text))
        except ValueError as error:
            return replace(completion, text=None, error_message=str(error), error_class=ErrorClass.MODEL)

    def render(self, document: str) -> str:
        """Render the request for one document."""
        document = self.without_markup(document)
        return document if self.template is None else self.template.format(prompt=document)

    def without_markup(self, document: str) -> str:
        """Break up markup in a document with a space, so that the document can't break out of the prompt."""
        for token in self.markup:
            if token in document:
                document = document.replace(token, f"{token[0]} {token[1:]}")
        return document

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything except the document that determines the answer."""
        parameters: dict[str, Any] = dict(self.parameters)
        if parameters.get("do_sample"):
            parameters["seed"] = self.seed
        parts = [self.digest, self.engine, self.dtype, parameters, self.template, *filter(None, [self.rules])]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def request_hash(self, document: str) -> str:
        """SHA-256 of everything that determines the answer."""
        request = self.render(document).encode("utf-8", "surrogatepass")
        return hashlib.sha256(self.fingerprint.encode() + request).hexdigest()


class Engine(Protocol):
    """Runs a model. A row's text must not depend on the other rows."""

    def stream(self, documents: Sequence[str], batch_tokens: int | None = None) -> Iterator[tuple[int, Completion]]:
        """Generate one text for each document. An error affects only its row.

        Args:
            documents: the texts.
            batch_tokens: padded input tokens per batch; 0 for row by row, None for the model's own value.

        Yields:
            Index in ``documents`` and completion, as each one finishes.
        """


def generate(engine: Engine, documents: Sequence[str], batch_tokens: int | None = None) -> list[Completion]:
    """Generate one text for each document, in the same order."""
    return [completion for _, completion in sorted(engine.stream(documents, batch_tokens), key=lambda pair: pair[0])]
