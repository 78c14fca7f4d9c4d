"""Records of JSON Lines and CSV files, plain or gzipped, and of Parquet files, read in bounded memory."""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from batch_assets.errors import BatchAssetsError
from batch_assets.sources.reasons import Reason
from batch_assets.sources.records import Record

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")

# Maximum characters of a line or a CSV field: enough for long documents, and a limit for lines that never end.
LONGEST_RECORD = 16 * 1024 * 1024
# Text compresses to a hundredth at best. Only crafted files reach the thousandth that gzip is capable of.
_MAX_RATIO, _ALWAYS_ALLOWED = 200, 64 * 1024 * 1024
_BUFFER = 1024 * 1024
_ROWS_AT_ONCE = 10
# UTF-32 first, because its little-endian mark starts with the one of UTF-16.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

csv.field_size_limit(LONGEST_RECORD)


def is_readable(name: str) -> bool:
    """Whether the file name has a supported ending."""
    return name.lower().endswith(SUFFIXES)


def stem(name: str) -> str:
    """The file name without the ending for its format."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def records_of(files: pafs.FileSystem, path: str, columns: Sequence[str]) -> Iterator[Record]:
    """Yield every record of a file.

    Text is UTF-8, unless a byte order mark says otherwise. A record with invalid bytes is rejected later.

    Args:
        files: file system of the file.
        path: path in the file system.
        columns: columns that are needed; others may be left out.

    Raises:
        BatchAssetsError: the content of the file, or of the rest of it, can't be read.
        OSError: the file itself can't be read now.
    """
    name = path.rpartition("/")[2]
    kind = name.lower().removesuffix(".gz")
    with files.open_input_file(path) as file:
        source = _Source(file)
        try:
            if kind.endswith(".parquet"):
                yield from _parquet(name, source, columns)
            else:
                text = _text(source, file.size(), is_packed=name.lower().endswith(".gz"))
                yield from _csv(name, text, columns) if kind.endswith(".csv") else _json_lines(name, text)
        except _UnreachableError as error:
            raise error.cause from None
        # Gzip and Arrow raise OSErrors for bad content too. Rejected records store this error as their reason, and a
        # changed reason would land the batch again.
        except (OSError, EOFError, zlib.error, pa.ArrowException, csv.Error, UnicodeError) as error:
            raise BatchAssetsError(f"{path} can't be read: {error}") from error


class _UnreachableError(Exception):
    """The bytes of a file can't be read now, which says nothing about its content."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Source(io.RawIOBase):
    """The bytes of a file; errors while they are read are told from errors of their content."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._file.read(len(buffer))
        except OSError as error:
            raise _UnreachableError(error) from error
        buffer[: len(content)] = content
        return len(content)


class _LimitedBytes(io.RawIOBase):
    """The bytes of a file, up to a limit against decompression bombs."""

    def __init__(self, source: Any, limit: int | None) -> None:
        self._source = source
        self._remaining = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = int(self._source.readinto(buffer))
        if self._remaining is not None:
            self._remaining -= read
            if self._remaining < 0:
                raise OSError(f"it unpacks to more than {_MAX_RATIO} times its size")
        return read


def _text(source: Any, size: int, *, is_packed: bool) -> io.TextIOWrapper:
    if is_packed:
        limit = max(size * _MAX_RATIO, _ALWAYS_ALLOWED)
        buffered = io.BufferedReader(_LimitedBytes(gzip.GzipFile(fileobj=source), limit), _BUFFER)
    else:
        buffered = io.BufferedReader(_LimitedBytes(source, None), _BUFFER)
    start = buffered.peek(4)[:4]
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8-sig")
    # Bytes that are not UTF-8 become surrogates here, and their record is rejected by validate().
    return io.TextIOWrapper(buffered, encoding=encoding, errors="surrogateescape", newline="")


def _json_lines(name: str, text: io.TextIOWrapper) -> Iterator[Record]:
    position = 0
    for number, (line, is_complete) in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        fields, problem = None, None
        if not is_complete:
            problem = Reason.LONG_LINE.format(line=number, most=LONGEST_RECORD)
        else:
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                problem = Reason.NOT_JSON.format(line=number, error=error)
            if problem is None and not isinstance(fields, dict):
                fields, problem = None, Reason.NO_OBJECT.format(line=number)
        yield Record(name, position, fields, line.rstrip("\r\n"), problem)
        position += 1


def _lines(text: io.TextIOWrapper) -> Iterator[tuple[str, bool]]:
    """Yield each line, and whether it is complete: only the beginning of a line that is too long is yielded."""
    text.reconfigure(newline="\n")  # a carriage return does not end a line
    while line := text.readline(LONGEST_RECORD):
        is_complete = line.endswith("\n") or len(line) < LONGEST_RECORD
        rest = "" if is_complete else text.readline(_BUFFER)
        while rest and not rest.endswith("\n"):
            rest = text.readline(_BUFFER)
        yield line, is_complete


def _csv(name: str, text: io.TextIOWrapper, columns: Sequence[str]) -> Iterator[Record]:
    # Strict, because an unclosed quote would otherwise swallow the rest of the file silently.
    reader = csv.DictReader(_csv_lines(text), strict=True)
    names = list(reader.fieldnames or [])
    repeated = sorted({name for name in columns if names.count(name) > 1})
    if repeated:
        raise csv.Error(f"it names the column(s) {', '.join(repeated)} twice")
    for position in count():
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field larger" in str(error):
                raise  # the start of the next record is unknown
            yield Record(name, position, None, "", Reason.NOT_CSV.format(line=reader.line_num, error=error))
            continue
        problem = None
        if None in row:
            problem = Reason.MORE_FIELDS.format(columns=len(names))
        elif None in row.values():
            problem = Reason.FEWER_FIELDS.format(columns=len(names))
        yield Record(name, position, None if problem else row, json.dumps(row), problem)


def _csv_lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(LONGEST_RECORD):
        if len(line) == LONGEST_RECORD:
            # The start of the next record is unknown, because the line may be inside quotes.
            raise OSError(f"a line is longer than {LONGEST_RECORD} characters")
        yield line


def _parquet(name: str, source: io.RawIOBase, columns: Sequence[str]) -> Iterator[Record]:
    position = 0
    with pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER) as file:
        present = [name for name in columns if name in file.schema_arrow.names]
        for rows in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=present or None, use_threads=False):
            for place in range(rows.num_rows):
                yield _parquet_row(name, position, rows.slice(place, 1))
                position += 1


def _parquet_row(name: str, position: int, row: pa.RecordBatch) -> Record:
    try:
        (fields,) = row.to_pylist()
    except Exception as error:  # invalid text, a date beyond Python's range, an unknown time zone
        return Record(name, position, None, "", Reason.UNREADABLE_VALUE.format(type=type(error).__name__, error=error))
    longest = max((len(value) for value in fields.values() if isinstance(value, str)), default=0)
    problem = Reason.LONG_VALUE.format(most=LONGEST_RECORD) if longest > LONGEST_RECORD else None
    raw = "" if problem else json.dumps(fields, default=str)
    return Record(name, position, None if problem else fields, raw, problem)
