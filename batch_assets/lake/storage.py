"""One file system over everything delta-rs can reach: a local folder or an object store."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from batch_assets.errors import BatchAssetsError


def root_of(uri: str) -> str:
    """A table's root as everything here spells it: a local folder as a plain path, anything else as it is.

    Raises:
        BatchAssetsError: a local path with %, in which delta-rs would look for another folder, or half a URI.
    """
    if uri.startswith("file:"):
        if not uri.startswith("file:///"):
            raise BatchAssetsError(f"{uri} is no address of a folder: write file:///path, or the path alone")
        uri = unquote(uri.removeprefix("file://"))
    if "://" not in uri and "%" in uri:
        raise BatchAssetsError(f"the folder {uri} has % in its name, which delta-rs takes for an escape: rename it")
    return uri


def file_system(root: str, storage_options: Mapping[str, str]) -> pafs.FileSystem:
    """Open a file system whose paths are relative to ``root``.

    Objects appear whole, when their writer closes them.

    Args:
        root: a local folder, made if missing, or a URI that delta-rs understands.
        storage_options: as in delta-rs.
    """
    from deltalake.fs import DeltaStorageHandler

    root = root_of(root)
    if "://" not in root:
        Path(root).mkdir(parents=True, exist_ok=True)
    return pafs.PyFileSystem(DeltaStorageHandler(root, dict(storage_options)))


def remove_half_written(root: str, before: float) -> list[str]:
    """Remove files of a local folder whose writer was killed before it closed them; object stores show no such files.

    delta-rs writes to ``<name>#<number>`` and renames at the end, and leaves these names out of its listings.

    Args:
        root: the folder; for a URI of an object store, there is nothing to do.
        before: files that were written to later stay, in seconds since 1970.

    Returns:
        The removed files.
    """
    if "://" in root:
        return []
    removed = []
    for path in Path(root).rglob("*.parquet#*"):
        with suppress(FileNotFoundError):  # its writer has just renamed it
            if path.stat().st_mtime < before:
                path.unlink()
                removed.append(str(path))
    return removed


def read_parquet(files: pafs.FileSystem, path: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one Parquet file, read in the calling thread (see ``data_file``)."""
    with files.open_input_file(path) as source:
        yield from pq.ParquetFile(source, pre_buffer=False).iter_batches(columns=columns, use_threads=False)
