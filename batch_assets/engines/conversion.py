"""The description file that is stored with a converted model. Each model is converted only once."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from batch_assets.engines.contract import ScoringModel
from batch_assets.engines.encoding import Encoding

CONVERSION_FILE = "batch_assets.json"
TOKENIZER_FILE = "standalone_tokenizer.json"


@dataclass(frozen=True)
class Conversion:
    """How to call a converted model so that it answers like the pipeline, and how closely its output matches.

    Args:
        refusal: why the model can't be converted; the other fields are then unset.
        prefix: text before each document.
        longest_input: maximum input tokens of a decoder-only model.
        end_ids: tokens that end an answer.
        decoding: decoding arguments of the engine.
        compared: number of held-out documents scored with both engines.
        equal: number of those with the same text.
        score: name of the task's main score.
        score_difference: its mean minus the reference's, on those documents.
    """

    refusal: str | None = None
    prefix: str = ""
    longest_input: int = 0
    end_ids: tuple[int, ...] = ()
    decoding: dict[str, Any] = field(default_factory=dict)
    compared: int = 0
    equal: int = 0
    score: str = "rouge1"
    score_difference: float = 0.0

    def write(self, folder: Path) -> Path:
        """Write the file next to the converted model. A folder that contains it is complete."""
        path = folder / CONVERSION_FILE
        path.write_text(json.dumps(asdict(self), indent=1))
        return path

    @classmethod
    def read(cls, folder: Path) -> "Conversion":
        """Read the file from a folder."""
        return cls.parse((folder / CONVERSION_FILE).read_text())

    @classmethod
    def parse(cls, text: str) -> "Conversion":
        """Parse the content of the file."""
        content = json.loads(text)
        # Releases that knew one task wrote this name.
        content.setdefault("score_difference", content.pop("rouge1_difference", 0.0))
        return cls(**{**content, "end_ids": tuple(content["end_ids"])})

    def encoding(self, model: ScoringModel, tokenizer: Tokenizer) -> Encoding:
        """Create the encoding of the converted model."""
        return Encoding(model, tokenizer, self.prefix, self.longest_input, self.end_ids)
