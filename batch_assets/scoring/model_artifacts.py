"""Model folders for hosts that don't share the driver's files: downloaded once per host, and verified."""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from batch_assets.locks import locked

# MLflow adds it to copies of a registered version.
_IGNORED_FILES = {"registered_model_meta"}


@dataclass(frozen=True)
class Artifact:
    """A folder in an artifact store: its URI, and the SHA-256 of the names and bytes of its files."""

    uri: str
    digest: str

    @classmethod
    def of(cls, folder: str, uri: str) -> "Artifact":
        """Describe the artifact at a URI by the driver's copy in ``folder``."""
        return cls(uri, digest_of_folder(Path(folder)))

    def fetch(self) -> str:
        """Return the folder on this host. The first process that needs it downloads it.

        It is kept in the folder for temporary files (``TMPDIR``), readable only by this user.

        Raises:
            RuntimeError: the download failed, or differs from the driver's copy.
        """
        root = Path(tempfile.gettempdir()) / f"batch_assets_models_{os.getuid()}"
        root.mkdir(mode=0o700, exist_ok=True)
        if root.stat().st_uid != os.getuid():
            raise RuntimeError(f"{root} belongs to another user: set TMPDIR to another folder on the workers")
        cached = root / self.digest
        with locked(root / f"{self.digest}.lock"):
            if not cached.exists():
                for abandoned in root.glob(f".{self.digest}-*"):
                    shutil.rmtree(abandoned)
                self._download(Path(tempfile.mkdtemp(prefix=f".{self.digest}-", dir=root)), cached)
        return str(cached)

    def _download(self, staging: Path, cached: Path) -> None:
        import mlflow

        host = os.uname().nodename
        try:
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=self.uri, dst_path=str(staging)))
        except Exception as error:
            raise RuntimeError(
                f"the worker on {host} can't fetch the model from {self.uri} ({_one_line(error)}): keep MLflow's "
                "artifacts where workers can reach them, behind a tracking server, in an object store, or on a shared "
                "file system"
            ) from error
        found = digest_of_folder(folder)
        if found != self.digest:
            raise RuntimeError(
                f"the model that the worker on {host} fetched from {self.uri} differs from the driver's: "
                "make sure that both use the same artifact store, and run the batch again"
            )
        folder.rename(cached)
        shutil.rmtree(staging, ignore_errors=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def digest_of_folder(folder: Path) -> str:
    """SHA-256 of the names and bytes of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name not in _IGNORED_FILES:
            with path.open("rb") as file:
                digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
