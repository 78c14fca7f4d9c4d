"""One file system over everything delta-rs can reach: a local folder or an object store."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow.fs as pafs


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
