"""What goes into an engine and what comes out of it, row by row."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol

# A batch in which that many rows, and all of them, fail is not committed: the rows are hardly the reason.
SYSTEMIC_ERRORS = 5


class RowError(StrEnum):
    """Why a document has no summary, with braces around what depends on the model."""

    NO_TEXT = "the document has no text"
    WORKER_DIED = "the worker process died over this document"
    MARKUP = "the document has text that the tokenizer takes for markup of the prompt"
    LONG_PROMPT = "the prompt alone is longer than the {tokens} tokens the model takes"
    FAILED = "{type}: {error}"


@dataclass(frozen=True)
class Generation:
    """What an engine made of one document.

    ``text`` is None exactly where ``error_message`` is not. ``finish_reason`` is ``stop`` or
    ``length``. Tokens are counted with the model's own tokenizer, special tokens of the answer's end
    left out.
    """

    text: str | None
    error_message: str | None = None
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_truncated: bool = False


@dataclass(frozen=True)
class ScoringModel:
    """A registered version as workers need it.

    Args:
        name: registered name.
        version: its number.
        digest: SHA-256 of weights, tokenizer, configuration and template.
        path: local folder of the MLflow model.
        parameters: generation parameters that were logged with it.
        template: format string with ``{prompt}`` for the document, None for an encoder-decoder.
        engine: name of the engine.
        dtype: precision of the engine.
        seed: of the sampling.
        markup: texts that the tokenizer takes for markup.
        device_map: where the model goes.
        batch_tokens: padded input tokens of one batch.
        engine_path: folder of what was converted for the engine, empty where nothing was.
        uri: address of ``path`` in the artifact store.
        engine_uri: address of ``engine_path`` there.
        engine_reason: why it is that engine.
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

    def render(self, document: str) -> str:
        """The request for one document."""
        document = self.without_markup(document)
        return document if self.template is None else self.template.format(prompt=document)

    def without_markup(self, document: str) -> str:
        """A document in which nothing ends or steers the prompt: markup is broken up by a space."""
        for token in self.markup:
            if token in document:
                document = document.replace(token, f"{token[0]} {token[1:]}")
        return document

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything but the document that decides what is written."""
        parameters: dict[str, Any] = dict(self.parameters)
        if parameters.get("do_sample"):
            parameters["seed"] = self.seed
        parts = [self.digest, self.engine, self.dtype, parameters, self.template]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def request_hash(self, document: str) -> str:
        """SHA-256 of everything that decides what the answer will be."""
        request = self.render(document).encode("utf-8", "surrogatepass")
        return hashlib.sha256(self.fingerprint.encode() + request).hexdigest()


class Engine(Protocol):
    """Runs a model. A row's text doesn't depend on the other rows."""

    def stream(self, documents: Sequence[str], batch_tokens: int | None = None) -> Iterator[tuple[int, Generation]]:
        """Write one text for each document; an error stays with its row.

        Args:
            documents: the texts.
            batch_tokens: padded input tokens of one batch, 0 for row by row; default is the model's.

        Yields:
            Places in ``documents`` and what was written, as they are finished.
        """


def generate(engine: Engine, documents: Sequence[str], batch_tokens: int | None = None) -> list[Generation]:
    """Write one text for each document, in the same order."""
    return [generation for _, generation in sorted(engine.stream(documents, batch_tokens), key=lambda pair: pair[0])]
