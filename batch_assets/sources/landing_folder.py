"""The landing folder, on a disk or in a bucket: files that are dropped there become batches.

A file is complete when its size and time of modification have not changed for a while; a name that begins with ``.`` or
``_``, or ends in ``.tmp`` or ``.part``, is not complete yet. A subfolder names one batch, and is complete when all its
files are. Files that are complete at the same look join one batch.

What was taken is written down in ``.batches/<batch>.json`` before anything else happens to it, and a mark in ``.new/``
stays until the batch has been asked for. A file that differs from what is written down is a new version of its batch:
``.places/`` says which batch a file or subfolder belongs to, ``.keys/`` which one a batch of the table was cut from.
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
from batch_assets.lake.names import batch_from
from batch_assets.lake.storage import file_system
from batch_assets.locks import locked
from batch_assets.sources.dataset import Dataset, Part, Slice
from batch_assets.sources.formats import SUFFIXES, is_readable, records_of, stem
from batch_assets.sources.reasons import Reason
from batch_assets.sources.records import Record

_log = logging.getLogger(__name__)

_BATCHES, _KEYS, _PLACES, _NEW, _TAKEN = ".batches", ".keys", ".places", ".new", ".taken"
_HIDDEN = (".", "_")
# For -0001 to -9999999.
_SUFFIX_ROOM = 8
# For what a joined name and such a suffix take.
_ROOM_FOR_JOINED = 55
_BUFFER = 1024 * 1024


@dataclass(frozen=True)
class Seen:
    """A file as a look found it: bytes, time of modification in nanoseconds, since when (seconds since 1970)."""

    size: int
    modified: int
    since: float
    is_taken: bool = False

    def is_same(self, other: "Seen") -> bool:
        """Whether the file has not changed between two looks."""
        return (self.size, self.modified) == (other.size, other.modified)


@dataclass(frozen=True)
class Group:
    """Complete files that make one batch."""

    batch: str
    files: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class LandingFolder:
    """A folder of dropped files.

    Args:
        root: a local folder, or a URI that delta-rs understands.
        batch_rows: records that a batch has at most.
        archives: whether a file is moved to ``.taken`` once it is taken.
        locks: folder of lock files, for several processes of this machine; None where one process takes all files.
    """

    root: str
    batch_rows: int
    archives: bool = True
    locks: Path | None = None

    def look(self, before: Mapping[str, Seen]) -> dict[str, Seen]:
        """Every dropped file by its path below the folder; ``before`` is what the last look has seen."""
        now, seen = time.time(), {}
        for info in self._dropped():
            found = Seen(info.size, info.mtime_ns, now)
            known = before.get(info.path)
            seen[info.path] = known if known is not None and known.is_same(found) else found
        return seen

    def complete(self, seen: Mapping[str, Seen], settle_seconds: float) -> list[Group]:
        """What may be taken: files that have not changed for so many seconds, by the batch that they make."""
        now = time.time()
        settled = {key for key, file in seen.items() if now - file.since >= settle_seconds}
        fresh = sorted(key for key in settled if not seen[key].is_taken)
        unsettled_folders = {key.rpartition("/")[0] for key in seen.keys() - settled}
        places: dict[str, list[str]] = {}
        for key in fresh:
            # Of the files of a folder that were taken before, the record says what they were.
            if not _is_folder(_place(key)) or key.rpartition("/")[0] not in unsettled_folders:
                places.setdefault(_place(key), []).append(key)
        groups: dict[str, list[str]] = {}
        single = []
        for place, keys in places.items():
            batch = self._batch_of(place)
            if batch is None and not _is_folder(place):
                single += keys
            else:
                groups.setdefault(batch or self._free_name(_name_of(place), groups), []).extend(keys)
        if single:
            name = _name_of(stem(single[0])) if len(single) == 1 else _joined_name()
            groups[self._free_name(name, groups)] = single
        return [Group(batch, tuple(keys), sum(seen[key].size for key in keys)) for batch, keys in groups.items()]

    def claim(self, group: Group) -> None:
        """Write down which batch the files belong to, whoever takes them, and when."""
        for place in {_place(key) for key in group.files}:
            self._write(f"{_PLACES}/{_digest(place)}", group.batch)

    @contextmanager
    def held(self, batch: str) -> Iterator[None]:
        """Within it, no other process of this machine takes files into the batch."""
        with nullcontext() if self.locks is None else locked(self.locks / f"landing-{batch}.lock"):
            yield

    def take(self, group: Group) -> bool:
        """Write down what the files hold, and put them away; whether that is news."""
        with self.held(group.batch):
            return self._take(group)

    def _take(self, group: Group) -> bool:
        files = self._files
        described = {key: self._describe(key, key) for key in group.files}
        known = self._known(group.batch)
        before = {file["path"]: file for file in known["files"]}
        is_news = any(before.get(key, {}).get("sha256") != file["sha256"] for key, file in described.items())
        if is_news:
            # First: whoever goes on after a kill must not put them elsewhere.
            self.claim(group)
            self._write_down(group.batch, known, before | described)
        if self.archives:
            for key in group.files:
                archived = f"{_TAKEN}/{group.batch}/{key}"
                files.create_dir(archived.rpartition("/")[0])
                files.move(key, archived)
        return is_news

    def name_for(self, paths: Sequence[Path], batch: str | None) -> str:
        """Name the batch that copies of some files will be, before it is cut to size.

        Args:
            paths: the files.
            batch: what it should be called, by default what the files are called.

        Raises:
            BatchAssetsError: a file has none of the formats, or two have the same name.
        """
        for path in paths:
            if not is_readable(path.name):
                raise BatchAssetsError(f"{path} can't be taken: files end in {', '.join(SUFFIXES)}")
        if len({path.name for path in paths}) < len(paths):
            raise BatchAssetsError("two files have the same name: land them one by one, or rename one")
        return _name_of(batch or (stem(paths[0].name) if len(paths) == 1 else _joined_name()))

    def take_copies(self, paths: Sequence[Path], name: str, *, replaces: bool) -> None:
        """Take copies of files from anywhere on this machine at once, as one batch; the caller must hold it.

        Args:
            paths: the files.
            name: the batch, as ``name_for`` gives it.
            replaces: whether it may replace a batch that was made from other files.

        Raises:
            BatchAssetsError: the batch would replace another one.
        """
        known = self._known(name)
        if self._content(f"{_KEYS}/{name}") not in {None, name}:
            raise BatchAssetsError(f"the batch {name} is part of another one: say --batch with another name")
        others = {PurePosixPath(file["path"]).name for file in known["files"]} - {path.name for path in paths}
        if others and not replaces:
            raise BatchAssetsError(
                f"the batch {name} was made from {', '.join(sorted(others))}: say --batch {name} to replace it, or "
                "--batch with another name"
            )
        self._files.create_dir(f"{_TAKEN}/{name}")
        described = {}
        for path in paths:
            target = f"{_TAKEN}/{name}/{path.name}"
            pafs.copy_files(str(path), target, pafs.LocalFileSystem(), self._files, use_threads=False)
            described[path.name] = self._describe(path.name, target)
        self._write_down(name, known, described)

    def news(self) -> dict[str, str]:
        """Batches that were taken and are not forgotten, each with a digest of what they are made from."""
        found = {}
        for info in self._list(_NEW):
            name = info.base_name
            record = self._record(name)
            if record is not None:
                found[name] = _digest([record["files"], record["version"]])
        return found

    def forget(self, name: str) -> None:
        """The batch was asked for, and is no news any more."""
        with suppress(FileNotFoundError):  # a sensor and a person may be at it
            self._files.delete_file(f"{_NEW}/{name}")

    def keys_of(self, name: str) -> list[str]:
        """The batches that a taken one was cut into."""
        record = self._record(name)
        return list(record["batches"]) if record else []

    def dataset_of(self, batch: str, before: "LandedDataset | None" = None) -> "LandedDataset | None":
        """The data set of one taken batch, None if the batch doesn't come from this folder.

        Args:
            batch: key of the batch in the table.
            before: the data set of another batch, which is read on where it holds both.
        """
        name = self._content(f"{_KEYS}/{batch}")
        record = None if name is None else self._record(name)
        if name is None or record is None:
            return None
        found = LandedDataset(self, name, record)
        return before if before is not None and before.is_same(found) else found

    def records(self, name: str, file: Mapping[str, Any]) -> Iterator[Record]:
        """The records of a file that was taken.

        Raises:
            BatchAssetsError: the file is gone, or not what it was when it was taken.
        """
        # In both places while a new version is being put away: what was written down is one of them.
        for path in (f"{_TAKEN}/{name}/{file['path']}", file["path"]):
            is_there = self._files.get_file_info(path).type == pafs.FileType.File
            if is_there and self._size_and_digest(path) == (file["bytes"], file["sha256"]):
                return self._readable(path)
        raise BatchAssetsError(
            f"{file['path']} of the batch {name} is not in {self.root} as it was when it was taken: drop it again"
        )

    @property
    def _files(self) -> pafs.FileSystem:
        if "://" in self.root:
            return file_system(self.root, {})
        Path(self.root).mkdir(parents=True, exist_ok=True)
        # As they are named: delta-rs would take some characters for escapes.
        return pafs.SubTreeFileSystem(self.root, pafs.LocalFileSystem())

    def _list(self, folder: str) -> list[pafs.FileInfo]:
        return list(self._files.get_file_info(pafs.FileSelector(folder, allow_not_found=True)))

    def _dropped(self) -> Iterator[pafs.FileInfo]:
        for info in self._list(""):
            if _name(info).startswith(_HIDDEN):
                continue
            inside = self._list(info.path) if info.type == pafs.FileType.Directory else [info]
            for file in inside:
                is_hidden = _name(file).startswith(_HIDDEN)
                if file.type == pafs.FileType.File and not is_hidden and is_readable(file.base_name):
                    yield file

    def _batch_of(self, place: str) -> str | None:
        """The batch that a folder, or a file without one, belongs to since it was first taken."""
        return self._content(f"{_PLACES}/{_digest(place)}")

    def _free_name(self, name: str, others: Collection[str]) -> str:
        """A name that neither a batch has, nor what a batch was cut into, nor one of the others."""
        is_taken = name in others or self._record(name) is not None or self._content(f"{_KEYS}/{name}") is not None
        return f"{name[:_ROOM_FOR_JOINED]}-{_joined_name()}" if is_taken else name

    def _record(self, name: str) -> dict[str, Any] | None:
        content = self._content(f"{_BATCHES}/{name}.json")
        record: dict[str, Any] | None = None if content is None else json.loads(content)
        return record

    def _known(self, name: str) -> dict[str, Any]:
        return self._record(name) or {"files": [], "batches": [], "rows": self.batch_rows, "version": 0}

    def _write_down(self, name: str, known: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> None:
        """Note what a batch is made from, and the batches of the table that it is cut into.

        They keep their names and sizes when it changes: what grows gets more of them, what shrinks leaves the last
        ones empty.
        """
        rows = known["rows"]
        records = sum(file["records"] for file in files.values())
        batches = list(known["batches"])
        needed = -(-records // rows)
        if not batches and needed <= 1:
            batches = [name]
        batches += self._cuts(name, range(len(batches) + 1, needed + 1))
        # A file that is as it once was is news, too: without the version, nobody would ask for it again.
        version = known["version"] + 1
        record = {"files": [files[key] for key in sorted(files)], "batches": batches, "rows": rows, "version": version}
        for batch in set(batches) - set(known["batches"]):
            self._write(f"{_KEYS}/{batch}", name)
        # The mark first: a batch that is written down is always asked for.
        self._write(f"{_NEW}/{name}", "")
        self._write(f"{_BATCHES}/{name}.json", json.dumps(record, indent=1))

    def _cuts(self, name: str, numbers: Sequence[int]) -> list[str]:
        """Batches that a large one is cut into, by names that no other one has."""
        cuts = [f"{name}-{number:04d}" for number in numbers]
        if all(self._content(f"{_KEYS}/{cut}") in {None, name} for cut in cuts):
            return cuts
        other = f"{name[:_ROOM_FOR_JOINED]}-{_joined_name()}"
        return [f"{other}-{number:04d}" for number in numbers]

    def _describe(self, key: str, path: str) -> dict[str, Any]:
        size, digest = self._size_and_digest(path)
        count = sum(1 for _ in self._readable(path))
        return {"path": key, "bytes": size, "sha256": digest, "records": count}

    def _size_and_digest(self, path: str) -> tuple[int, str]:
        digest = hashlib.sha256()
        size = 0
        with self._files.open_input_stream(path, compression=None) as stream:
            while chunk := stream.read(_BUFFER):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    def _readable(self, path: str) -> Iterator[Record]:
        """The records of a file; what can't be read of it is one more record, with the reason."""
        position = 0
        try:
            for record in records_of(self._files, path):
                position = record.position + 1
                yield record
        except BatchAssetsError as error:
            name = PurePosixPath(path).name
            yield Record(name, position, None, "", Reason.UNREADABLE_FILE.format(error=error))

    def _content(self, path: str) -> str | None:
        """What a small file holds, None if there is none."""
        if self._files.get_file_info(path).type != pafs.FileType.File:
            return None
        with self._files.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read()).decode()

    def _write(self, path: str, content: str) -> None:
        """Write a small file that is seen whole or not at all."""
        files = self._files
        folder, _, name = path.rpartition("/")
        files.create_dir(folder)
        part = f"{folder}/.{name}.{uuid.uuid4().hex}.part"
        # Buffered: delta-rs takes bytes, but not the buffers that Arrow would hand it.
        with files.open_output_stream(part, compression=None, buffer_size=_BUFFER) as stream:
            stream.write(content.encode())
        files.move(part, path)


class LandedDataset(Dataset):
    """What was taken as one batch of a landing folder, as a data set."""

    def __init__(self, folder: LandingFolder, name: str, record: Mapping[str, Any]) -> None:
        super().__init__(f"{folder.root}/{_BATCHES}/{name}.json", record["rows"])
        self._folder, self._batch, self._record = folder, name, record

    def is_same(self, other: "LandedDataset") -> bool:
        """Whether both are the same batch, made from the same files."""
        return (self._batch, self._record) == (other._batch, other._record)

    def parts(self) -> list[Part]:
        """The one part."""
        return [self._part]

    @cached_property
    def _part(self) -> Part:
        files = self._record["files"]
        # What a batch is made from is known by content, wherever the files are.
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
    """What a batch is made of: a folder, or a file without one."""
    folder, _, name = key.rpartition("/")
    return f"{folder}/" if folder else name


def _is_folder(place: str) -> bool:
    return place.endswith("/")


def _name(info: pafs.FileInfo) -> str:
    """The name of a file; that of one which can't be named is hidden, and logged."""
    try:
        return str(info.base_name)
    except UnicodeDecodeError as error:
        _log.warning("a file in the landing folder is left alone, its name is not UTF-8: %r", error.object)
        return _HIDDEN[0]


def _name_of(text: str) -> str:
    """A batch's name made of a file's or a folder's, which may have no character that a batch takes."""
    try:
        return batch_from(text, room=_SUFFIX_ROOM)
    except ValueError:
        return f"landed-{_digest(text)}"


def _digest(about: Any) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _joined_name() -> str:
    return f"landed-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
