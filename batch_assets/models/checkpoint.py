"""A checkpoint: a model's weights, tokenizer and configuration in a local folder."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_assets.engines.model_files import ENCODER_DECODERS, check_model_folder
from batch_assets.errors import BatchAssetsError, raise_if_of_this_machine
from batch_assets.tasks.task import Task

# Bytes per weight.
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be used for scoring.

    Args:
        name: display name.
        folder: folder with the files.
        origin: URL or path that the files came from.

    Raises:
        BatchAssetsError: a file is missing, the folder could run code, or the model type is not supported.
    """

    name: str
    folder: Path
    origin: str

    def __post_init__(self) -> None:
        check_model_folder(self.folder)

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        config: dict[str, Any] = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return config

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the model is an encoder-decoder (T5, BART) rather than decoder-only."""
        return self.config["model_type"] in ENCODER_DECODERS

    def pipeline_of(self, task: Task) -> str:
        """The transformers pipeline for a task with this architecture."""
        return task.pipeline if self.is_encoder_decoder else "text-generation"

    def digest(self) -> str:
        """SHA-256 over weights, tokenizer and configuration."""
        total = hashlib.sha256()
        for path in sorted(self.folder.iterdir()):
            if path.is_file() and path.suffix in {".json", ".safetensors", ".model", ".txt", ".jinja"}:
                with path.open("rb") as file:
                    total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()

    def weight_bytes(self, dtype: str) -> int:
        """Size of the weights in bytes at a precision."""
        stored = WEIGHT_BYTES.get(str(self.config.get("dtype") or self.config.get("torch_dtype")), 4)
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors")) * WEIGHT_BYTES[dtype] // stored

    def check_tokenizer(self, *, quickly: bool) -> None:
        """Check that the tokenizer loads.

        Args:
            quickly: skip importing transformers, which takes ten seconds; a run may still refuse the tokenizer.

        Raises:
            BatchAssetsError: the tokenizer can't be loaded.
        """
        file = self.folder / "tokenizer.json"
        try:
            if quickly and file.is_file():
                _read_tokenizer(file)
            else:
                from transformers import AutoTokenizer

                AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
            raise_if_of_this_machine(error)
            raise BatchAssetsError(
                f"the model folder {self.folder} has no usable tokenizer ({type(error).__name__}): save one there with "
                "tokenizer.save_pretrained()"
            ) from error


def _read_tokenizer(file: Path) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more specific
        raise ValueError(str(error)) from error
