"""What goes into an engine and what comes out of it, row by row."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

# A batch in which that many rows, and all of them, fail is not committed: the rows are hardly the reason.
SYSTEMIC_ERRORS = 5


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
        engine_path: folder of what was converted for it, empty for the reference.
        engine_reason: why it is that engine.
        dtype: precision of the engine.
        seed: of the sampling.
        device_map: where the model goes.
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
    device_map: str = "auto"
    engine_path: str = ""
    engine_reason: str = ""

    def render(self, document: str) -> str:
        """The request for one document."""
        return document if self.template is None else self.template.format(prompt=document)

    def request_hash(self, document: str) -> str:
        """SHA-256 of everything that decides what the answer will be."""
        parameters: dict[str, Any] = dict(self.parameters)
        if parameters.get("do_sample"):
            parameters["seed"] = self.seed
        parts = [self.digest, self.engine, self.dtype, parameters, self.render(document)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Engine(Protocol):
    """Runs a model. A row's text doesn't depend on the other rows."""

    def generate(self, documents: Sequence[str]) -> list[Generation]:
        """Write one text for each document, in the same order; an error stays with its row."""
