"""One file system interface to everything that delta-rs supports: local folders and object stores."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from batch_assets.errors import BatchAssetsError
from batch_assets.text import valid_text


def root_of(uri: str) -> str:
    """Normalize the root of a table: a local folder becomes a plain path, any other URI stays as it is.

    Raises:
        BatchAssetsError: a local path contains %, which delta-rs would decode, or a file: URI is malformed.
    """
    if uri.startswith("file:"):
        if not uri.startswith("file:///"):
            raise BatchAssetsError(f"{uri} is not the URI of a local folder: write file:///path, or just the path")
        uri = unquote(uri.removeprefix("file://"))
    if "://" not in uri and "%" in uri:
        raise BatchAssetsError(f"the path {uri} contains %, which delta-rs reads as an escape: rename it")
    return uri


def file_system(root: str, storage_options: Mapping[str, str]) -> pafs.FileSystem:
    """Open a file system whose paths are relative to ``root``.

    A file becomes visible, complete, when its writer closes it.

    Args:
        root: a local folder, created if missing, or a URI that delta-rs understands.
        storage_options: as in delta-rs.
    """
    from deltalake.fs import DeltaStorageHandler

    root = root_of(root)
    if "://" not in root:
        Path(root).mkdir(parents=True, exist_ok=True)
    return pafs.PyFileSystem(DeltaStorageHandler(root, dict(storage_options)))


def remove_half_written(root: str, before: float) -> list[str]:
    """Remove files that a killed writer left unfinished in a local folder; object stores never show such files.

    delta-rs writes to ``<name>#<number>`` and renames at the end; its listings hide these names.

    Args:
        root: the folder; nothing is done for the URI of an object store.
        before: keep files modified after this time, in seconds since 1970.

    Returns:
        Paths of the removed files.
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
        for rows in pq.ParquetFile(source, pre_buffer=False).iter_batches(columns=columns, use_threads=False):
            texts = [valid_text(column) if pa.types.is_string(column.type) else column for column in rows.columns]
            yield pa.RecordBatch.from_arrays(texts, schema=rows.schema)
