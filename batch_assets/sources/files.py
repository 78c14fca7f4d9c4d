"""Local files as a data set."""

import glob
import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pyarrow.fs as pafs

from batch_assets.errors import BatchAssetsError
from batch_assets.sources.column_mapping import XSUM_COLUMNS, ColumnMapping
from batch_assets.sources.dataset import Dataset, Part
from batch_assets.sources.formats import SUFFIXES, is_readable, records_of, stem
from batch_assets.sources.records import Record

_FILES = pafs.LocalFileSystem()


def is_local_name(dataset: str) -> bool:
    """Whether the value of BATCH_ASSETS_DATASET refers to local files rather than to the Hugging Face hub."""
    return (
        any(character in dataset for character in "*?,")
        or is_readable(dataset)
        or dataset.startswith((".", "/", "~"))
        or Path(dataset).exists()
    )


class FileDataset(Dataset):
    """Files given by paths, folders or globs, separated by commas."""

    def __init__(
        self, pattern: str, batch_rows: int, limit: int | None = None, columns: ColumnMapping = XSUM_COLUMNS
    ) -> None:
        super().__init__(pattern, batch_rows, limit, columns)
        self._paths = _find(pattern)

    def parts(self) -> list[Part]:
        """The files, in order."""
        return [_part(path, path.stat().st_mtime_ns, tuple(self.columns.names)) for path in self._paths]

    def read(self, part: Part) -> Iterator[Record]:
        """Every record of one file."""
        return records_of(_FILES, part.provenance["source"], self.columns.names)


@cache
def _part(path: Path, modified: int, columns: tuple[str, ...]) -> Part:
    """Describe a file. The modification time is only a cache key, so that changes are noticed."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BatchAssetsError(f"{path} can't be read: {error.strerror}") from error
    provenance = {"source": str(path), "bytes": path.stat().st_size, "sha256": digest}
    return Part(stem(path.name), sum(1 for _ in records_of(_FILES, str(path), columns)), provenance)


def _find(pattern: str) -> list[Path]:
    paths: list[Path] = []
    # An existing name is taken literally, even if it contains commas or wildcards.
    for one in [pattern] if Path(pattern).exists() else pattern.split(","):
        name = os.path.expanduser(one.strip())  # noqa: PTH111 - Path.expanduser fails for an unknown user
        if Path(name).is_file():
            found = [Path(name)]
        elif Path(name).is_dir():
            found = [path for path in Path(name).iterdir() if path.is_file() and is_readable(path.name)]
        else:
            matches = glob.glob(name, recursive=True)  # noqa: PTH207 - patterns may be absolute
            found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            raise BatchAssetsError(f"no file matches {one.strip()!r}: supported files end in {', '.join(SUFFIXES)}")
        for path in sorted(found):
            if not is_readable(path.name):
                raise BatchAssetsError(f"{path} can't be read: supported files end in {', '.join(SUFFIXES)}")
            paths.append(path.resolve())
    return list(dict.fromkeys(paths))
