"""The landing folder, on a disk or in a bucket: files that are dropped there become batches.

A file is complete when its size and modification time have not changed for a while. A name that starts with ``.`` or
``_``, or ends in ``.tmp`` or ``.part``, is not complete yet. A subfolder becomes one batch, and is complete when all
its files are. Other files that are complete at the same scan become one batch together.

Before anything happens to the files, ``.batches/<batch>.json`` records what the batch contains. A marker in ``.new/``
stays until a run was requested for the batch. A file that differs from the record is a new version of its batch:
``.places/`` maps a file or subfolder to its batch, ``.keys/`` maps a batch of the table to the batch it is part of.
"""

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.fs as pafs

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.storage import file_system
from batch_assets.locks import locked
from batch_assets.names import batch_from
from batch_assets.sources.column_mapping import XSUM_COLUMNS, ColumnMapping
from batch_assets.sources.dataset import Dataset, Part, Slice
from batch_assets.sources.formats import SUFFIXES, is_readable, records_of, stem
from batch_assets.sources.reasons import Reason
from batch_assets.sources.records import Record

_log = logging.getLogger(__name__)

_BATCHES, _KEYS, _PLACES, _NEW, _TAKEN = ".batches", ".keys", ".places", ".new", ".taken"
_HIDDEN = (".", "_")
# Room for a suffix from -0001 to -9999999.
_SUFFIX_ROOM = 8
# What a generated name and such a suffix leave of a name.
_ROOM_FOR_NAME = 55
_BUFFER = 1024 * 1024


@dataclass(frozen=True)
class ScannedFile:
    """A scanned file: size in bytes, modification time in nanoseconds, and since when both are the same (Unix time)."""

    size: int
    modified: int
    since: float
    is_taken: bool = False

    def is_same(self, other: "ScannedFile") -> bool:
        """Whether the file is unchanged since another scan."""
        return (self.size, self.modified) == (other.size, other.modified)


@dataclass(frozen=True)
class Group:
    """Complete files that form one batch."""

    batch: str
    files: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class LandingFolder:
    """A folder of dropped files.

    Args:
        root: a local folder, or a URI that delta-rs understands.
        batch_rows: maximum number of records per batch.
        archives: move files to ``.taken`` once they are taken.
        locks: folder of lock files, for several processes on this machine; None if only one process takes files.
        columns: where a record has its id, text and reference.
    """

    root: str
    batch_rows: int
    archives: bool = True
    locks: Path | None = None
    columns: ColumnMapping = XSUM_COLUMNS

    def scan(self, before: Mapping[str, ScannedFile]) -> dict[str, ScannedFile]:
        """All dropped files by their path below the folder; ``before`` is the result of the last scan."""
        now, seen = time.time(), {}
        for info in self._dropped():
            found = ScannedFile(info.size, info.mtime_ns, now)
            known = before.get(info.path)
            seen[info.path] = known if known is not None and known.is_same(found) else found
        return seen

    def complete(self, seen: Mapping[str, ScannedFile], settle_seconds: float) -> list[Group]:
        """The batches that can be taken now, from files that have not changed for ``settle_seconds``."""
        now = time.time()
        settled = {key for key, file in seen.items() if now - file.since >= settle_seconds}
        fresh = sorted(key for key in settled if not seen[key].is_taken)
        unsettled_folders = {key.rpartition("/")[0] for key in seen.keys() - settled}
        places: dict[str, list[str]] = {}
        for key in fresh:
            # The files of a folder that were taken before are in its record.
            if not _is_folder(_place(key)) or key.rpartition("/")[0] not in unsettled_folders:
                places.setdefault(_place(key), []).append(key)
        groups: dict[str, list[str]] = {}
        single = []
        for place, keys in places.items():
            batch = self._batch_of(place)
            if batch is None and not _is_folder(place):
                single += keys
            else:
                groups.setdefault(batch or self._free_name(_batch_name(place), groups), []).extend(keys)
        if single:
            name = _batch_name(stem(single[0])) if len(single) == 1 else _generated_name()
            groups[self._free_name(name, groups)] = single
        return [Group(batch, tuple(keys), sum(seen[key].size for key in keys)) for batch, keys in groups.items()]

    def claim(self, group: Group) -> None:
        """Record which batch the files belong to; any process may take them later."""
        for place in {_place(key) for key in group.files}:
            self._write_text(f"{_PLACES}/{_digest(place)}", group.batch)

    @contextmanager
    def lock(self, batch: str) -> Iterator[None]:
        """Keep other processes on this machine from taking files into the batch."""
        with nullcontext() if self.locks is None else locked(self.locks / f"landing-{batch}.lock"):
            yield

    def take(self, group: Group) -> bool:
        """Record what the files contain and archive them. Returns whether their content is new."""
        with self.lock(group.batch):
            return self._take(group)

    def _take(self, group: Group) -> bool:
        files = self._files
        described = {key: self._describe(key, key) for key in group.files}
        known = self._record_or_empty(group.batch)
        before = {file["path"]: file for file in known["files"]}
        is_new = any(before.get(key, {}).get("sha256") != file["sha256"] for key, file in described.items())
        if is_new:
            # First, so that a process that continues after a kill uses the same batch.
            self.claim(group)
            self._write_down(group.batch, known, before | described)
        if self.archives:
            for key in group.files:
                archived = f"{_TAKEN}/{group.batch}/{key}"
                files.create_dir(archived.rpartition("/")[0])
                files.move(key, archived)
        return is_new

    def name_for(self, paths: Sequence[Path], batch: str | None) -> str:
        """The name of the batch that copies of some files will form.

        Args:
            paths: the files.
            batch: the wanted name; by default, it is derived from the files.

        Raises:
            BatchAssetsError: a file has an unsupported format, or two files have the same name.
        """
        for path in paths:
            if not is_readable(path.name):
                raise BatchAssetsError(f"{path} can't be taken: supported files end in {', '.join(SUFFIXES)}")
        if len({path.name for path in paths}) < len(paths):
            raise BatchAssetsError("two files have the same name: land them one by one, or rename one")
        return _batch_name(batch or (stem(paths[0].name) if len(paths) == 1 else _generated_name()))

    def take_copies(self, paths: Sequence[Path], name: str, *, replaces: bool) -> None:
        """Take copies of any local files as one batch, without waiting. The caller must hold the batch.

        Args:
            paths: the files.
            name: the batch name from ``name_for``.
            replaces: allow replacing a batch that was made from other files.

        Raises:
            BatchAssetsError: the batch would replace another one.
        """
        known = self._record_or_empty(name)
        if self._read_text(f"{_KEYS}/{name}") not in {None, name}:
            raise BatchAssetsError(f"the batch {name} is part of another batch: use --batch with another name")
        others = {PurePosixPath(file["path"]).name for file in known["files"]} - {path.name for path in paths}
        if others and not replaces:
            raise BatchAssetsError(
                f"the batch {name} was made from {', '.join(sorted(others))}: use --batch {name} to replace it, or "
                "--batch with another name"
            )
        self._files.create_dir(f"{_TAKEN}/{name}")
        described = {}
        for path in paths:
            target = f"{_TAKEN}/{name}/{path.name}"
            pafs.copy_files(str(path), target, pafs.LocalFileSystem(), self._files, use_threads=False)
            described[path.name] = self._describe(path.name, target)
        self._write_down(name, known, described)

    def pending(self) -> dict[str, str]:
        """Taken batches that no run was requested for yet, each with a digest of its files."""
        found = {}
        for info in self._list(_NEW):
            name = info.base_name
            record = self._record(name)
            if record is not None:
                found[name] = _digest([record["files"], record["version"]])
        return found

    def land_again(self) -> None:
        """Make every taken batch pending, as if it had just been taken."""
        for info in self._list(_BATCHES):
            name = info.base_name.removesuffix(".json")
            with self.lock(name):
                record = self._record(name)
                if record is not None:
                    # A new version, so that its run is not taken for one that was requested before.
                    self._write_text(f"{_NEW}/{name}", "")
                    record["version"] += 1
                    self._write_text(f"{_BATCHES}/{name}.json", json.dumps(record, indent=1))

    def mark_requested(self, name: str) -> None:
        """Remove the batch from the pending ones, because a run was requested for it."""
        with suppress(FileNotFoundError):  # a sensor and a command may do this at the same time
            self._files.delete_file(f"{_NEW}/{name}")

    def keys_of(self, name: str) -> list[str]:
        """The batches of the table that a taken batch is split into."""
        record = self._record(name)
        return list(record["batches"]) if record else []

    def dataset_of(self, batch: str, before: "LandedDataset | None" = None) -> "LandedDataset | None":
        """The data set of a taken batch, or None if the batch did not come from this folder.

        Args:
            batch: key of the batch in the table.
            before: the data set of another batch, which is reused if it also contains this batch.
        """
        name = self._read_text(f"{_KEYS}/{batch}")
        record = None if name is None else self._record(name)
        if name is None or record is None:
            return None
        found = LandedDataset(self, name, record)
        return before if before is not None and before.is_same(found) else found

    def records(self, name: str, file: Mapping[str, Any]) -> Iterator[Record]:
        """The records of a taken file.

        Raises:
            BatchAssetsError: the file is missing, or has changed since it was taken.
        """
        # While a new version is being archived, there is a file in both places, and one of them matches the record.
        for path in (f"{_TAKEN}/{name}/{file['path']}", file["path"]):
            is_there = self._files.get_file_info(path).type == pafs.FileType.File
            if is_there and self._size_and_digest(path) == (file["bytes"], file["sha256"]):
                return self._read(path)
        raise BatchAssetsError(
            f"{file['path']} of the batch {name} is missing from {self.root}, or has changed since it was taken: "
            "drop it again"
        )

    @property
    def _files(self) -> pafs.FileSystem:
        if "://" in self.root:
            return file_system(self.root, {})
        Path(self.root).mkdir(parents=True, exist_ok=True)
        # Not through delta-rs, which would treat some characters of a name as escapes.
        return pafs.SubTreeFileSystem(self.root, pafs.LocalFileSystem())

    def _list(self, folder: str) -> list[pafs.FileInfo]:
        return list(self._files.get_file_info(pafs.FileSelector(folder, allow_not_found=True)))

    def _dropped(self) -> Iterator[pafs.FileInfo]:
        for info in self._list(""):
            if _file_name(info).startswith(_HIDDEN):
                continue
            inside = self._list(info.path) if info.type == pafs.FileType.Directory else [info]
            for file in inside:
                is_hidden = _file_name(file).startswith(_HIDDEN)
                if file.type == pafs.FileType.File and not is_hidden and is_readable(file.base_name):
                    yield file

    def _batch_of(self, place: str) -> str | None:
        """The batch that a folder, or a file outside folders, has belonged to since it was first taken."""
        return self._read_text(f"{_PLACES}/{_digest(place)}")

    def _free_name(self, name: str, others: Collection[str]) -> str:
        """The name if it is free, otherwise a generated one. ``others`` are names that are in use too."""
        is_taken = name in others or self._record(name) is not None or self._read_text(f"{_KEYS}/{name}") is not None
        return f"{name[:_ROOM_FOR_NAME]}-{_generated_name()}" if is_taken else name

    def _record(self, name: str) -> dict[str, Any] | None:
        content = self._read_text(f"{_BATCHES}/{name}.json")
        record: dict[str, Any] | None = None if content is None else json.loads(content)
        return record

    def _record_or_empty(self, name: str) -> dict[str, Any]:
        return self._record(name) or {"files": [], "batches": [], "rows": self.batch_rows, "version": 0}

    def _write_down(self, name: str, known: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> None:
        """Record the files of a batch, and the batches of the table that it is split into.

        When the batch changes, these keep their names and sizes: more are added if it grows, and the last ones become
        empty if it shrinks.
        """
        rows = known["rows"]
        records = sum(file["records"] for file in files.values())
        batches = list(known["batches"])
        needed = -(-records // rows)
        if not batches and needed <= 1:
            batches = [name]
        batches += self._part_names(name, range(len(batches) + 1, needed + 1))
        # Without the version, a file that returns to an earlier content would not count as a change.
        version = known["version"] + 1
        record = {"files": [files[key] for key in sorted(files)], "batches": batches, "rows": rows, "version": version}
        for batch in set(batches) - set(known["batches"]):
            self._write_text(f"{_KEYS}/{batch}", name)
        # The marker first, so that a run is requested for every recorded batch.
        self._write_text(f"{_NEW}/{name}", "")
        self._write_text(f"{_BATCHES}/{name}.json", json.dumps(record, indent=1))

    def _part_names(self, name: str, numbers: Sequence[int]) -> list[str]:
        """Names of the batches that a large batch is split into; no other batch has them."""
        names = [f"{name}-{number:04d}" for number in numbers]
        if all(self._read_text(f"{_KEYS}/{part}") in {None, name} for part in names):
            return names
        other = f"{name[:_ROOM_FOR_NAME]}-{_generated_name()}"
        return [f"{other}-{number:04d}" for number in numbers]

    def _describe(self, key: str, path: str) -> dict[str, Any]:
        size, digest = self._size_and_digest(path)
        count = sum(1 for _ in self._read(path))
        return {"path": key, "bytes": size, "sha256": digest, "records": count}

    def _size_and_digest(self, path: str) -> tuple[int, str]:
        digest = hashlib.sha256()
        size = 0
        with self._files.open_input_stream(path, compression=None) as stream:
            while chunk := stream.read(_BUFFER):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    def _read(self, path: str) -> Iterator[Record]:
        """Yield the records of a file. If the rest can't be read, the last record says why."""
        position = 0
        try:
            for record in records_of(self._files, path, self.columns.names):
                position = record.position + 1
                yield record
        except BatchAssetsError as error:
            name = PurePosixPath(path).name
            yield Record(name, position, None, "", Reason.UNREADABLE_FILE.format(error=error))

    def _read_text(self, path: str) -> str | None:
        """The text of a small file, or None if it does not exist."""
        if self._files.get_file_info(path).type != pafs.FileType.File:
            return None
        with self._files.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read()).decode()

    def _write_text(self, path: str, content: str) -> None:
        """Write a small file atomically."""
        files = self._files
        folder, _, name = path.rpartition("/")
        files.create_dir(folder)
        part = f"{folder}/.{name}.{uuid.uuid4().hex}.part"
        # Buffered, because delta-rs accepts bytes, but not Arrow's buffers.
        with files.open_output_stream(part, compression=None, buffer_size=_BUFFER) as stream:
            stream.write(content.encode())
        files.move(part, path)


class LandedDataset(Dataset):
    """A batch that was taken from a landing folder, as a data set."""

    def __init__(self, folder: LandingFolder, name: str, record: Mapping[str, Any]) -> None:
        super().__init__(f"{folder.root}/{_BATCHES}/{name}.json", record["rows"], columns=folder.columns)
        self._folder, self._batch, self._record = folder, name, record

    def is_same(self, other: "LandedDataset") -> bool:
        """Whether both are the same batch with the same files."""
        return (self._batch, self._record) == (other._batch, other._record)

    def parts(self) -> list[Part]:
        """The whole batch, as the only part."""
        return [self._part]

    @cached_property
    def _part(self) -> Part:
        files = self._record["files"]
        # The provenance identifies files by content, because they move.
        return Part(self._batch, sum(file["records"] for file in files), {"source": self.name, "files": list(files)})

    @cached_property
    def _slices(self) -> dict[str, Slice]:
        records, rows = self._part.records, self._batch_rows
        return {
            key: Slice(self._part, min(number * rows, records), min((number + 1) * rows, records))
            for number, key in enumerate(self._record["batches"])
        }

    def read(self, part: Part) -> Iterator[Record]:
        """Every record, file by file."""
        for file in part.provenance["files"]:
            yield from self._folder.records(self._batch, file)


def _place(key: str) -> str:
    """The folder of a file, which ends in ``/``; the file itself if it is outside folders."""
    folder, _, name = key.rpartition("/")
    return f"{folder}/" if folder else name


def _is_folder(place: str) -> bool:
    return place.endswith("/")


def _file_name(info: pafs.FileInfo) -> str:
    """The name of a file. A name that is not UTF-8 is logged, and replaced by a hidden one."""
    try:
        return str(info.base_name)
    except UnicodeDecodeError as error:
        _log.warning("skipping a file in the landing folder, because its name is not UTF-8: %r", error.object)
        return _HIDDEN[0]


def _batch_name(text: str) -> str:
    """A batch name from the name of a file or folder; a digest if no character is allowed in batch names."""
    try:
        return batch_from(text, room=_SUFFIX_ROOM)
    except ValueError:
        return f"landed-{_digest(text)}"


def _digest(about: Any) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _generated_name() -> str:
    return f"landed-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
