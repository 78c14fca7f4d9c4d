"""Folders of a model on hosts that don't share the driver's files: fetched once a host, and checked."""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from batch_assets.locks import locked

# What MLflow adds to a copy of a registered version.
_NOT_OF_THE_MODEL = {"registered_model_meta"}


@dataclass(frozen=True)
class Artifact:
    """A folder in an artifact store: its address, and the SHA-256 of names and bytes of its files."""

    uri: str
    digest: str

    @classmethod
    def of(cls, folder: str, uri: str) -> "Artifact":
        """The artifact at an address, of which the driver has a copy in ``folder``."""
        return cls(uri, digest_of_folder(Path(folder)))

    def fetch(self) -> str:
        """The folder on this host, fetched by the first process that asks for it.

        It lies in the folder for temporary files (``TMPDIR``), readable for this user only.

        Raises:
            RuntimeError: it can't be fetched, or what was fetched is not what the driver has.
        """
        root = Path(tempfile.gettempdir()) / f"batch_assets_models_{os.getuid()}"
        root.mkdir(mode=0o700, exist_ok=True)
        if root.stat().st_uid != os.getuid():
            raise RuntimeError(f"{root} belongs to somebody else: set TMPDIR on the workers")
        kept = root / self.digest
        with locked(root / f"{self.digest}.lock"):
            if not kept.exists():
                for abandoned in root.glob(f".{self.digest}-*"):
                    shutil.rmtree(abandoned)
                self._download(Path(tempfile.mkdtemp(prefix=f".{self.digest}-", dir=root)), kept)
        return str(kept)

    def _download(self, aside: Path, kept: Path) -> None:
        import mlflow

        host = os.uname().nodename
        try:
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=self.uri, dst_path=str(aside)))
        except Exception as error:
            raise RuntimeError(
                f"the worker on {host} can't fetch the model from {self.uri} ({_line(error)}): keep MLflow's artifacts "
                "where workers reach them, behind a tracking server, in an object store, or on a shared file system"
            ) from error
        found = digest_of_folder(folder)
        if found != self.digest:
            raise RuntimeError(
                f"what the worker on {host} fetched from {self.uri} is not the model that the driver has"
            )
        folder.rename(kept)
        shutil.rmtree(aside, ignore_errors=True)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def digest_of_folder(folder: Path) -> str:
    """SHA-256 of the names and bytes of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name not in _NOT_OF_THE_MODEL:
            with path.open("rb") as file:
                digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
