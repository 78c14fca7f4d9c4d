"""Deletion vectors: which rows of a data file are deleted, although the file still contains them.

The driver finds their descriptors in the log; executors read the vectors of the files that they read. delta-rs's
``DeltaTable.deletion_vectors`` reads all of them on the driver, at a byte for each row of their files, and refuses
tables with widened types.

https://github.com/delta-io/delta/blob/master/PROTOCOL.md#deletion-vectors
"""

import base64
import re
import uuid
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.commit_log import LOG_FOLDER, parse_actions, read_commit
from batch_assets.lake.roaring_bitmaps import positions
from batch_assets.lake.storage import file_system

# https://rfc.zeromq.org/spec/32/, and the alphabet of Python's base85, which groups the digits alike.
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_TO_B85 = str.maketrans(_Z85, _B85)
_UUID_DIGITS = 20

# A checkpoint is one file, several files that are numbered parts, or one file with a unique name.
_CHECKPOINT = re.compile(
    r"(?P<version>\d{20})\.checkpoint(\.(?P<part>\d{10})\.(?P<parts>\d{10})|\.[0-9a-f-]{36})?\.(parquet|json)"
)


@dataclass(frozen=True)
class DeletionVector:
    """The descriptor of a deletion vector in the log; ``rows`` is the number of deleted rows."""

    storage: str
    place: str
    offset: int
    size: int
    rows: int

    @classmethod
    def of(cls, add: Mapping[str, Any]) -> "DeletionVector | None":
        """Return the deletion vector of an add action, None if it has none."""
        found = add.get("deletionVector")
        if not found or found["storageType"] is None:
            return None
        place, offset = found["pathOrInlineDv"], found.get("offset") or 0
        return cls(found["storageType"], place, offset, found["sizeInBytes"], found["cardinality"])

    def deleted(self, uri: str, storage_options: Mapping[str, str]) -> np.ndarray:
        """Read the sorted positions of the deleted rows in the data file, from 0.

        Args:
            uri: root of the table.
            storage_options: as in delta-rs.

        Raises:
            BatchAssetsError: the vector is missing, damaged, or stored in an unknown way.
        """
        try:
            data = _from_z85(self.place)[: self.size] if self.storage == "i" else self._read(uri, storage_options)
            found = positions(data)
            if len(found) != self.rows:
                raise ValueError(f"it deletes {len(found)} rows, not {self.rows}")
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise BatchAssetsError(
                f"can't read the deletion vector {self.storage}{self.place} of the table at {uri}: {reason}"
            ) from error
        return found

    def _read(self, uri: str, storage_options: Mapping[str, str]) -> bytes:
        root, path = self._file(uri)
        with file_system(root, storage_options).open_input_file(path) as file:
            file.seek(self.offset)
            data = bytes(file.read(self.size + 8))
        size, checksum = data[:4], data[-4:]
        if len(data) != self.size + 8 or int.from_bytes(size, "big") != self.size:
            raise ValueError(f"{path} has no vector of {self.size} bytes at {self.offset}")
        if zlib.crc32(data[4:-4]) != int.from_bytes(checksum, "big"):
            raise ValueError(f"{path} is damaged: its checksum is wrong")
        return data[4:-4]

    def _file(self, uri: str) -> tuple[str, str]:
        """Return the file of the vector as a root and a path relative to it."""
        if self.storage == "u":
            prefix, name = self.place[:-_UUID_DIGITS], self.place[-_UUID_DIGITS:]
            file = f"deletion_vector_{uuid.UUID(bytes=_from_z85(name))}.bin"
            return uri, f"{prefix}/{file}" if prefix else file
        if self.storage != "p":
            raise ValueError(f"unknown storage type {self.storage}")
        # Hadoop writes file:/folder for file:///folder.
        path = unquote(re.sub("^file:/+", "/", self.place))
        root, _, name = path.rpartition("/")
        if "://" not in root and not Path(root).is_dir():  # a file system would create it
            raise ValueError(f"there is no folder {root}")
        return root, name


def _from_z85(text: str) -> bytes:
    return base64.b85decode(text.translate(_TO_B85))


def deletion_vectors(
    uri: str, storage_options: Mapping[str, str], version: int, log_paths: Collection[str]
) -> dict[str, DeletionVector]:
    """Find the deletion vectors of a table's data files in its log; files without one are left out.

    Args:
        uri: root of the table.
        storage_options: as in delta-rs.
        version: version of the table.
        log_paths: the data files of that version, as the log names them.

    Raises:
        BatchAssetsError: the log is incomplete.
    """
    files = file_system(uri, storage_options)
    missing = {unquote(path): path for path in log_paths}
    found: dict[str, DeletionVector] = {}
    for add in _adds(files, version) if missing else ():
        # The newest action for a path counts.
        path = missing.pop(unquote(add["path"]), None)
        vector = DeletionVector.of(add)
        if path is not None and vector is not None:
            found[path] = vector
        if not missing:
            return found
    if missing:
        raise BatchAssetsError(f"the log of the table at {uri} has no action that adds {next(iter(missing.values()))}")
    return found


def _adds(files: pafs.FileSystem, version: int) -> Iterator[Mapping[str, Any]]:
    """Yield the add actions up to a version, newest first, from its commits and the checkpoint before them."""
    start, checkpoint = _newest_checkpoint(files, version)
    for number in range(version, start, -1):
        actions = read_commit(files, number)
        if actions is None:
            raise BatchAssetsError(f"the log has no version {number}, which is newer than its last checkpoint")
        yield from (action["add"] for action in actions if action.get("add"))
    for path in checkpoint:
        yield from _adds_of_checkpoint(files, path)


def _newest_checkpoint(files: pafs.FileSystem, version: int) -> tuple[int, list[str]]:
    """Return the version and the files of the newest complete checkpoint up to a version, -1 if there is none."""
    found: dict[tuple[int, int], list[str]] = {}  # by version and number of parts
    for info in files.get_file_info(pafs.FileSelector(LOG_FOLDER)):
        name = _CHECKPOINT.fullmatch(info.path.rsplit("/", 1)[-1])
        if name is not None and int(name["version"]) <= version:
            found.setdefault((int(name["version"]), int(name["parts"] or 1)), []).append(info.path)
    complete = [key for key, paths in found.items() if len(paths) >= key[1]]
    if not complete:
        return -1, []
    newest = max(complete)
    # Several files with one part each are several checkpoints of the same version.
    return newest[0], sorted(found[newest])[: newest[1]]


def _adds_of_checkpoint(files: pafs.FileSystem, path: str) -> Iterator[Mapping[str, Any]]:
    for action in _actions_of_checkpoint(files, path):
        # Some writers leave out the fields of other kinds of actions, others the actions.
        add, sidecar = ((action.get(kind) or {}) for kind in ("add", "sidecar"))
        if add.get("path"):
            yield add
        elif sidecar.get("path"):
            name = unquote(sidecar["path"]).rsplit("/", 1)[-1]
            yield from _adds_of_checkpoint(files, f"{LOG_FOLDER}/_sidecars/{name}")


def _actions_of_checkpoint(files: pafs.FileSystem, path: str) -> Iterator[Mapping[str, Any]]:
    if path.endswith(".json"):
        with files.open_input_stream(path) as stream:
            yield from parse_actions(stream.read())
        return
    with files.open_input_file(path) as source:
        parquet = pq.ParquetFile(source, pre_buffer=False)
        columns = ["add.path", "add.deletionVector", "sidecar.path"]
        for rows in parquet.iter_batches(columns=columns, use_threads=False):
            yield from rows.to_pylist()
