"""Checkpoints: where a model's weights, tokenizer and configuration come from."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.inference.model_files import ENCODER_DECODERS, check_model_folder
from batch_assets.models import smollm2
from batch_assets.models.task import Task
from batch_assets.settings import EMBEDDED_MODEL, Settings

# What of a hub repository a checkpoint needs. Weights come as safetensors only: pickled ones can run code.
_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]

# Of one parameter.
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in a local folder; ``origin`` says where it came from.

    Raises:
        BatchAssetsError: the folder lacks a part, could run code, or has a model that is not supported.
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
        """The transformers pipeline for a task that fits the architecture."""
        return task.pipeline if self.is_encoder_decoder else "text-generation"

    def digest(self) -> str:
        """SHA-256 over weights, tokenizer and configuration."""
        total = hashlib.sha256()
        for path in sorted(self.folder.iterdir()):
            if path.is_file() and path.suffix in {".json", ".safetensors", ".model", ".txt", ".jinja"}:
                with path.open("rb") as file:
                    total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()


def _is_folder(model: str) -> bool:
    return model.startswith((".", "/", "~")) or Path(model).is_dir()


def is_on_hub(model: str) -> bool:
    """Whether the name of a model means one of the hub."""
    return model != EMBEDDED_MODEL and not _is_folder(model)


def check_checkpoint(settings: Settings, *, quickly: bool = False) -> None:
    """Make sure, without loading weights, that the configured model is available and supported.

    Args:
        settings: name the model.
        quickly: do without transformers, whose import takes ten seconds; a run may still refuse the tokenizer.

    Raises:
        BatchAssetsError: it isn't, and what to do.
    """
    model = settings.model
    if model == EMBEDDED_MODEL:
        smollm2.gguf_file()
        return
    checkpoint = _on_this_machine(settings)
    if checkpoint is not None:
        _check_tokenizer(checkpoint, quickly)
        return
    import huggingface_hub

    try:
        huggingface_hub.model_info(model, timeout=20)
    except (OSError, ValueError) as error:
        raise _hub_error(model, error) from error


def weight_bytes(settings: Settings) -> int | None:
    """What the weights of the configured model take in the configured precision; None where they aren't here yet.

    Raises:
        BatchAssetsError: there is no such model.
    """
    wanted = _BYTES[settings.dtype]
    if settings.model == EMBEDDED_MODEL:
        return smollm2.PARAMETERS * wanted
    checkpoint = _on_this_machine(settings)
    if checkpoint is None:
        return None
    config = checkpoint.config
    stored = _BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), _BYTES["float32"])
    return sum(path.stat().st_size for path in checkpoint.folder.glob("*.safetensors")) * wanted // stored


def load_checkpoint(settings: Settings) -> Checkpoint:
    """Get the configured checkpoint into a local folder.

    Raises:
        BatchAssetsError: it isn't available, lacks a part, could run code, or is not supported.
    """
    model = settings.model
    if model == EMBEDDED_MODEL:
        folder = smollm2.prepare(settings.home / "checkpoints" / smollm2.NAME)
        return Checkpoint(smollm2.NAME, folder, smollm2.ORIGIN)
    if _is_folder(model):
        return _local(model)
    import huggingface_hub

    try:
        fetched = huggingface_hub.snapshot_download(model, cache_dir=_cache(settings), allow_patterns=_PATTERNS)
    except (OSError, ValueError) as error:
        raise _hub_error(model, error) from error
    return _from_hub(model, Path(fetched))


def _local(model: str) -> Checkpoint:
    folder = Path(os.path.expanduser(model)).resolve()  # noqa: PTH111 - Path.expanduser fails for an unknown user
    return Checkpoint(folder.name, folder, str(folder))


def _from_hub(model: str, folder: Path) -> Checkpoint:
    return Checkpoint(model, folder, f"https://huggingface.co/{model}")


def _on_this_machine(settings: Settings) -> Checkpoint | None:
    """The configured folder, or the copy of a model of the hub; None where that was not downloaded yet."""
    if _is_folder(settings.model):
        return _local(settings.model)
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = huggingface_hub.snapshot_download(
            settings.model, cache_dir=_cache(settings), allow_patterns=_PATTERNS, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _hub_error(settings.model, error) from error
    return _from_hub(settings.model, Path(cached))


def _cache(settings: Settings) -> Path:
    return settings.home / "checkpoints" / "hub"


def _hub_error(model: str, error: Exception) -> BatchAssetsError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return BatchAssetsError(
        f"the model {model} can't be loaded from the Hugging Face hub ({reason}): check the name and the network, "
        f"or set BATCH_ASSETS_MODEL={EMBEDDED_MODEL}, which needs no hub"
    )


def _check_tokenizer(checkpoint: Checkpoint, quickly: bool) -> None:
    folder = checkpoint.folder
    file = folder / "tokenizer.json"
    try:
        if quickly and file.is_file():
            _read_tokenizer(file)
        else:
            from transformers import AutoTokenizer

            AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise BatchAssetsError(
            f"the model folder {folder} has no tokenizer that can be loaded ({type(error).__name__}): save it there "
            "with tokenizer.save_pretrained()"
        ) from error


def _read_tokenizer(file: Path) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no other type
        raise ValueError(str(error)) from error
