"""What a model is converted to once, so that scoring need not: the file that goes with a converted model."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from batch_assets.inference.contract import ScoringModel
from batch_assets.inference.encoding import Encoding

CONVERSION_FILE = "batch_assets.json"
TOKENIZER_FILE = "standalone_tokenizer.json"


@dataclass(frozen=True)
class Conversion:
    """How a converted model is asked so that it answers as the pipeline would, and how far it does.

    Args:
        refusal: why it can't; then there is nothing else.
        prefix: goes before a document.
        longest_input: tokens of input that a decoder-only model takes.
        end_ids: tokens that end an answer.
        decoding: arguments of the engine.
        compared: held-out documents that were scored with it and with the reference.
        equal: of them, those with the same summary.
        rouge1_difference: its ROUGE-1 less the reference's, on those documents.
    """

    refusal: str | None = None
    prefix: str = ""
    longest_input: int = 0
    end_ids: tuple[int, ...] = ()
    decoding: dict[str, Any] = field(default_factory=dict)
    compared: int = 0
    equal: int = 0
    rouge1_difference: float = 0.0

    def write(self, folder: Path) -> Path:
        """Put it beside the converted model; a folder that has it is complete."""
        path = folder / CONVERSION_FILE
        path.write_text(json.dumps(asdict(self), indent=1))
        return path

    @classmethod
    def read(cls, folder: Path) -> "Conversion":
        """Read it back."""
        return cls.parse((folder / CONVERSION_FILE).read_text())

    @classmethod
    def parse(cls, text: str) -> "Conversion":
        """Read it from the file's content."""
        content = json.loads(text)
        return cls(**{**content, "end_ids": tuple(content["end_ids"])})

    def encoding(self, model: ScoringModel, tokenizer: Tokenizer) -> Encoding:
        """Encodes documents for the converted model."""
        return Encoding(model, tokenizer, self.prefix, self.longest_input, self.end_ids)
