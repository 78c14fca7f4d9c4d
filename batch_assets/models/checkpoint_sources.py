"""Where the configured checkpoint comes from: a Python package, a local folder, or the Hugging Face hub."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from batch_assets.errors import BatchAssetsError, raise_if_of_this_machine
from batch_assets.models import smollm2
from batch_assets.models.checkpoint import WEIGHT_BYTES, Checkpoint
from batch_assets.settings import EMBEDDED_MODEL, Settings

# The files to download. Weights must be safetensors, because pickled weights can run code.
_FILE_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]


class CheckpointSource(ABC):
    """A place that a checkpoint comes from."""

    is_on_hub = False

    @abstractmethod
    def load(self) -> Checkpoint:
        """Get the checkpoint into a local folder.

        Raises:
            BatchAssetsError: the checkpoint is not available, lacks a file, could run code, or is not supported.
        """

    @abstractmethod
    def check(self, *, quickly: bool = False) -> None:
        """Check, without loading weights, that the checkpoint is available and supported.

        Args:
            quickly: skip importing transformers, which takes ten seconds; a run may still refuse the tokenizer.

        Raises:
            BatchAssetsError: the checkpoint is not available or not supported; the message says what to do.
        """

    @abstractmethod
    def weight_bytes(self, dtype: str) -> int | None:
        """Size of the weights in bytes at a precision; None before they are downloaded.

        Raises:
            BatchAssetsError: the checkpoint does not exist.
        """


@dataclass(frozen=True)
class EmbeddedCheckpoint(CheckpointSource):
    """The model in an installed Python package; ``folder`` holds the converted copy."""

    folder: Path

    def load(self) -> Checkpoint:
        """Convert the package's file on first use."""
        return Checkpoint(smollm2.NAME, smollm2.prepare(self.folder), smollm2.ORIGIN)

    def check(self, *, quickly: bool = False) -> None:
        """Check that the package is installed."""
        smollm2.gguf_file()

    def weight_bytes(self, dtype: str) -> int | None:
        """Computed from the number of parameters."""
        return smollm2.PARAMETERS * WEIGHT_BYTES[dtype]


@dataclass(frozen=True)
class FolderCheckpoint(CheckpointSource):
    """A local folder written by ``save_pretrained()``."""

    folder: Path

    def load(self) -> Checkpoint:
        """Use the folder in place."""
        return Checkpoint(self.folder.name, self.folder, str(self.folder))

    def check(self, *, quickly: bool = False) -> None:
        """Check the files and the tokenizer."""
        self.load().check_tokenizer(quickly=quickly)

    def weight_bytes(self, dtype: str) -> int | None:
        """Taken from the files."""
        return self.load().weight_bytes(dtype)


@dataclass(frozen=True)
class HubCheckpoint(CheckpointSource):
    """A model on the Hugging Face hub; ``cache`` is the download folder."""

    name: str
    cache: Path

    is_on_hub = True

    def load(self) -> Checkpoint:
        """Download the model, or use the copy on this machine."""
        return self._snapshot(local_files_only=False)

    def check(self, *, quickly: bool = False) -> None:
        """Check the copy on this machine, or the hub if there is no copy."""
        copy = self._copy()
        if copy is not None:
            copy.check_tokenizer(quickly=quickly)
            return
        import huggingface_hub

        try:
            huggingface_hub.model_info(self.name, timeout=20)
        except (OSError, ValueError) as error:
            raise_if_of_this_machine(error)
            raise self._error(error) from error

    def weight_bytes(self, dtype: str) -> int | None:
        """Taken from the copy on this machine."""
        copy = self._copy()
        return None if copy is None else copy.weight_bytes(dtype)

    def _copy(self) -> Checkpoint | None:
        """The copy on this machine; None before the first download."""
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return self._snapshot(local_files_only=True)
        except BatchAssetsError as error:
            if isinstance(error.__cause__, LocalEntryNotFoundError):
                return None
            raise

    def _snapshot(self, *, local_files_only: bool) -> Checkpoint:
        import huggingface_hub

        try:
            folder = huggingface_hub.snapshot_download(
                self.name, cache_dir=self.cache, allow_patterns=_FILE_PATTERNS, local_files_only=local_files_only
            )
        except (OSError, ValueError) as error:
            raise_if_of_this_machine(error)
            raise self._error(error) from error
        return Checkpoint(self.name, Path(folder), f"https://huggingface.co/{self.name}")

    def _error(self, error: Exception) -> BatchAssetsError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return BatchAssetsError(
            f"the model {self.name} can't be loaded from the Hugging Face hub ({reason}): check the name and the "
            f"network, or use {EMBEDDED_MODEL}, which needs no hub (BATCH_ASSETS_MODEL={EMBEDDED_MODEL}, or "
            "model.checkpoint in a pipeline's file)"
        )


def checkpoint_source(settings: Settings) -> CheckpointSource:
    """The source of the checkpoint that BATCH_ASSETS_MODEL names."""
    model = settings.model
    if model == EMBEDDED_MODEL:
        return EmbeddedCheckpoint(settings.home / "checkpoints" / smollm2.NAME)
    if model.startswith((".", "/", "~")) or Path(model).is_dir():
        return FolderCheckpoint(Path(os.path.expanduser(model)).resolve())  # noqa: PTH111 - Path.expanduser fails for an unknown user
    return HubCheckpoint(model, settings.home / "checkpoints" / "hub")
