"""Local files: JSON Lines, CSV and Parquet, plain or compressed with gzip."""

import csv
import glob
import gzip
import hashlib
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from batch_assets.errors import BatchAssetsError
from batch_assets.sources.dataset import Dataset, Part
from batch_assets.sources.records import Record

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")

csv.field_size_limit(sys.maxsize)


def looks_local(dataset: str) -> bool:
    """Whether the value of BATCH_ASSETS_DATASET means local files rather than a data set of the hub."""
    return (
        any(character in dataset for character in "*?,")
        or dataset.lower().endswith(SUFFIXES)
        or dataset.startswith((".", "/", "~"))
        or Path(dataset).exists()
    )


class FileDataset(Dataset):
    """Files named by a path, a folder or a glob; several are separated by commas."""

    def __init__(self, pattern: str, batch_rows: int, limit: int | None = None) -> None:
        super().__init__(pattern, batch_rows, limit)
        self._paths = _find(pattern)

    def parts(self) -> list[Part]:
        """The files, by name."""
        return [_part(path, path.stat().st_mtime_ns) for path in self._paths]

    def read(self, part: Part) -> Iterator[Record]:
        """Every record of one file."""
        return records_of(Path(part.provenance["source"]))


@cache
def _part(path: Path, modified: int) -> Part:
    """A file by path and time of modification, so that a change is noticed."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BatchAssetsError(f"{path} can't be read: {error.strerror}") from error
    provenance = {"source": str(path), "bytes": path.stat().st_size, "sha256": digest}
    return Part(stem(path), sum(1 for _ in records_of(path)), provenance)


def _find(pattern: str) -> list[Path]:
    paths: list[Path] = []
    # A name that exists is meant as it stands, whatever characters it has.
    for one in [pattern] if Path(pattern).exists() else pattern.split(","):
        name = os.path.expanduser(one.strip())  # noqa: PTH111 - Path.expanduser fails for an unknown user
        if Path(name).is_file():
            found = [Path(name)]
        elif Path(name).is_dir():
            found = [path for path in Path(name).iterdir() if path.is_file() and path.name.lower().endswith(SUFFIXES)]
        else:
            matches = glob.glob(name, recursive=True)  # noqa: PTH207 - patterns may be absolute
            found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            raise BatchAssetsError(f"no file of a data set matches {one.strip()!r}; files end in {', '.join(SUFFIXES)}")
        for path in sorted(found):
            if not path.name.lower().endswith(SUFFIXES):
                raise BatchAssetsError(f"{path} can't be read: files end in {', '.join(SUFFIXES)}")
            paths.append(path.resolve())
    return list(dict.fromkeys(paths))


def stem(path: Path) -> str:
    """Name of a file without what tells its format."""
    name = path.name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def records_of(path: Path) -> Iterator[Record]:
    """Every record of a file.

    Raises:
        BatchAssetsError: the file, or the rest of it, can't be read.
    """
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            yield from _parquet(path)
        elif name.endswith((".csv", ".csv.gz")):
            yield from _csv(path)
        else:
            yield from _json_lines(path)
    except (OSError, EOFError, zlib.error, pa.ArrowException, csv.Error) as error:
        raise BatchAssetsError(f"{path} can't be read: {error}") from error


def _open(path: Path) -> BinaryIO:
    # A GzipFile reads like any binary file.
    return cast(BinaryIO, gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _json_lines(path: Path) -> Iterator[Record]:
    with _open(path) as lines:
        position = 0
        for number, line in enumerate(lines):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
            if not content.strip():
                continue
            raw = content.decode(errors="replace").rstrip("\r\n")
            fields, problem = None, None
            try:
                fields = json.loads(content)
            except (ValueError, RecursionError) as error:
                problem = f"line {number + 1} is not JSON: {error}"
            if problem is None and not isinstance(fields, dict):
                fields, problem = None, f"line {number + 1} is not a JSON object"
            yield Record(path.name, position, fields, raw, problem)
            position += 1


def _csv(path: Path) -> Iterator[Record]:
    with _open(path) as binary:
        # Bytes that are not UTF-8 become surrogates here, and their record is rejected by validate().
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
        # Strict: a quote that is never closed would swallow the rest of the file without a word.
        reader = csv.DictReader(text, strict=True)
        names = list(reader.fieldnames or [])
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BatchAssetsError(f"{path} names the column(s) {', '.join(twice)} twice")
        for position, row in enumerate(reader):
            raw = json.dumps(row, ensure_ascii=True)
            problem = None
            if None in row:
                problem = f"there are {len(names)} columns, but more fields"
            elif None in row.values():
                problem = f"there are {len(names)} columns, but fewer fields"
            yield Record(path.name, position, None if problem else row, raw, problem)


def _parquet(path: Path) -> Iterator[Record]:
    position = 0
    with pq.ParquetFile(path) as file:
        columns = [name for name in ("id", "document", "summary") if name in file.schema_arrow.names]
        for rows in file.iter_batches(batch_size=1000, columns=columns or None):
            for fields in rows.to_pylist():
                yield Record(path.name, position, fields, json.dumps(fields, default=str))
                position += 1
