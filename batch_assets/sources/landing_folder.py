"""The landing folder: files that are dropped there become batches.

A file is complete when its size and time of modification have not changed for a while; a name that begins with ``.`` or
``_``, or ends in ``.tmp`` or ``.part``, is not complete yet. A subfolder names one batch, and is complete when all its
files are. Files that are complete at the same look join one batch.

What was taken is written down in ``<landing>/.batches/<batch>.json`` before anything else happens to it; a file that
differs from what is written there is a new version of its batch.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.names import batch_from
from batch_assets.sources.dataset import Dataset, Part
from batch_assets.sources.files import SUFFIXES, records_of, stem
from batch_assets.sources.records import Record

_BATCHES, _TAKEN = ".batches", ".taken"
_UNFINISHED = (".tmp", ".part", ".partial", ".crdownload")

Look = dict[str, tuple[int, int, float]]
"""Size, time of modification in nanoseconds, and when it was first seen so, by the file's path in the folder."""


@dataclass(frozen=True)
class LandingFolder:
    """A folder of dropped files.

    Args:
        root: the folder.
        archives: whether a file is moved to ``.taken`` once it is taken.
    """

    root: Path
    archives: bool = True

    def take(self, looked: Look, settle_seconds: float) -> tuple[list[str], Look]:
        """Take what is complete.

        Args:
            looked: what the last look has seen.
            settle_seconds: for how long a complete file has not changed.

        Returns:
            Batches that are new or have changed, by what they are called before they are cut to size, and what this
            look has seen.
        """
        now = time.time()
        seen: Look = {}
        for path in self._files():
            about = path.stat()
            key = str(path.relative_to(self.root))
            state = (about.st_size, about.st_mtime_ns)
            before = looked.get(key)
            seen[key] = (*state, before[2] if before is not None and tuple(before[:2]) == state else now)
        complete = {key for key, (_, _, since) in seen.items() if now - since >= settle_seconds}
        taken = []
        for batch, files in self._groups(sorted(complete), set(seen)):
            if self._write_down(batch, files):
                taken.append(batch)
        return taken, {key: state for key, state in seen.items() if (self.root / key).exists()}

    def take_files(self, files: Sequence[Path], batch: str | None) -> str:
        """Take files from anywhere at once, as one batch; they stay where they are.

        Returns:
            The batch, by what it is called before it is cut to size.
        """
        folder = self.root / _TAKEN
        name = batch_from(batch or (stem(files[0]) if len(files) == 1 else _joined()), room=8)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            if not file.name.lower().endswith(SUFFIXES):
                raise BatchAssetsError(f"{file} can't be taken: files end in {', '.join(SUFFIXES)}")
        for file in files:
            part = folder / name / f".{file.name}.part"
            part.write_bytes(file.read_bytes())
            part.replace(folder / name / file.name)
        self._record(name, [f"{_TAKEN}/{name}/{file.name}" for file in files])
        return name

    def batches(self) -> dict[str, list[Mapping[str, Any]]]:
        """The files of each batch that was ever taken."""
        folder = self.root / _BATCHES
        return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}

    def _files(self) -> Iterator[Path]:
        if not self.root.is_dir():
            return
        for path in sorted(self.root.iterdir()):
            for file in sorted(path.iterdir()) if path.is_dir() and not path.name.startswith((".", "_")) else [path]:
                name = file.name.lower()
                if file.is_file() and not name.startswith((".", "_")) and name.endswith(SUFFIXES):
                    yield file

    def _groups(self, complete: list[str], seen: set[str]) -> Iterator[tuple[str, list[str]]]:
        """Batches out of complete files: those that are taken already, folders, and what is left as one."""
        of = {file["path"]: batch for batch, files in self.batches().items() for file in files}
        groups: dict[str, list[str]] = {}
        new = []
        for key in complete:
            folder = str(Path(key).parent)
            if key in of:
                groups.setdefault(of[key], []).append(key)
            elif folder != ".":
                siblings = [other for other in seen if str(Path(other).parent) == folder]
                if set(siblings) <= set(complete):
                    groups.setdefault(batch_from(folder, room=8), []).append(key)
            else:
                new.append(key)
        if new:
            name = batch_from(stem(Path(new[0])), room=8) if len(new) == 1 else _joined()
            groups.setdefault(name if name not in self.batches() else f"{name}-{_joined()}", []).extend(new)
        yield from groups.items()

    def _write_down(self, batch: str, keys: list[str]) -> bool:
        """Note the files of a batch and put them away; whether anything about it is new."""
        known = {file["path"]: file for file in self.batches().get(batch, [])}
        files = {key: self._describe(key) for key in keys}
        if all(known.get(key, {}).get("sha256") == file["sha256"] for key, file in files.items()):
            self._put_away(batch, keys)
            return False
        self._record(batch, [*[key for key in known if key not in files], *keys], known | files)
        self._put_away(batch, keys)
        return True

    def _record(self, batch: str, keys: Sequence[str], described: Mapping[str, Any] | None = None) -> None:
        files = [(described or {}).get(key) or self._describe(key) for key in sorted(keys)]
        folder = self.root / _BATCHES
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{batch}.part"
        part.write_text(json.dumps(files, indent=1))
        part.replace(folder / f"{batch}.json")

    def _describe(self, key: str) -> dict[str, Any]:
        with (self.root / key).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        path = self.root / key
        count = sum(1 for _ in _readable(path))
        return {"path": key, "bytes": path.stat().st_size, "sha256": digest, "records": count}

    def _put_away(self, batch: str, keys: list[str]) -> None:
        if not self.archives:
            return
        for key in keys:
            target = self.root / _TAKEN / batch / Path(key).name
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.root / key).replace(target)

    def path_of(self, batch: str, file: Mapping[str, Any]) -> Path:
        """Where a taken file is now."""
        for path in (self.root / _TAKEN / batch / Path(file["path"]).name, self.root / file["path"]):
            if path.is_file():
                return path
        raise BatchAssetsError(f"{file['path']} of the batch {batch} is not in {self.root} any more")


class LandedDataset(Dataset):
    """The batches of a landing folder, as a data set."""

    def __init__(self, folder: LandingFolder, batch_rows: int) -> None:
        super().__init__(str(folder.root), batch_rows)
        self._folder = folder

    def parts(self) -> list[Part]:
        """One part for each batch that was taken."""
        return list(self._parts.values())

    @cached_property
    def _parts(self) -> dict[str, Part]:
        parts = {}
        for batch, files in self._folder.batches().items():
            count = sum(file["records"] for file in files)
            source = f"{self._folder.root / _BATCHES / batch}.json"
            # What the batch is made from is known by content, wherever the files are.
            parts[batch] = Part(batch, count, {"source": source, "files": list(files)})
        return parts

    def read(self, part: Part) -> Iterator[Record]:
        """Every record of one batch, file by file."""
        return self._records(part.name, part.provenance["files"])

    def batches_of(self, names: Iterable[str]) -> list[str]:
        """Keys of the batches that taken ones are cut into."""
        wanted = set(names)
        return [key for key, slice_ in self._slices.items() if slice_.part.name in wanted]

    def part_of(self, batch: str) -> str:
        """What a batch was called before it was cut to size."""
        return self._slices[batch].part.name

    def _records(self, batch: str, files: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
        return chain.from_iterable(_readable(self._folder.path_of(batch, file)) for file in files)


def _readable(path: Path) -> Iterator[Record]:
    """The records of a file; what can't be read of it is one more record, with the reason."""
    position = 0
    try:
        for record in records_of(path):
            position = record.position + 1
            yield record
    except BatchAssetsError as error:
        yield Record(path.name, position, None, "", f"the file can't be read from here on: {error}")


def _joined() -> str:
    return f"landed-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid() % 10000:04d}"
