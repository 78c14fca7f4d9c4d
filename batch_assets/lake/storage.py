"""One file system over everything delta-rs can reach: a local folder or an object store."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq


def file_system(root: str, storage_options: Mapping[str, str]) -> pafs.FileSystem:
    """Open a file system whose paths are relative to ``root``.

    Objects appear whole, when their writer closes them.

    Args:
        root: a local folder, made if missing, or a URI that delta-rs understands.
        storage_options: as in delta-rs.
    """
    from deltalake.fs import DeltaStorageHandler

    if "://" not in root:
        Path(root).mkdir(parents=True, exist_ok=True)
    return pafs.PyFileSystem(DeltaStorageHandler(root, dict(storage_options)))


def read_parquet(files: pafs.FileSystem, path: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one Parquet file, read in the calling thread (see ``data_file``)."""
    with files.open_input_file(path) as source:
        yield from pq.ParquetFile(source, pre_buffer=False).iter_batches(columns=columns, use_threads=False)
