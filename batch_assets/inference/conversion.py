"""What a model is converted to once, so that scoring need not: the file that goes with a CTranslate2 model."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_FILE = "batch_assets.json"


@dataclass(frozen=True)
class CTranslate2Conversion:
    """How a converted model is asked so that it answers as the pipeline would.

    ``refusal`` says why it can't; then there is nothing else. ``decoding`` are arguments of
    ``ctranslate2.Translator.translate_batch``, ``prefix`` goes before a document.
    """

    refusal: str | None = None
    prefix: str = ""
    decoding: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Put it beside the converted model."""
        (folder / _FILE).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> "CTranslate2Conversion":
        """Read it back."""
        return cls(**json.loads((folder / _FILE).read_text()))
