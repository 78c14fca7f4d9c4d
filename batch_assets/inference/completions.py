"""Finished completions of a run: immutable files that survive a killed run, and are never paid for twice."""

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from batch_assets.errors import BatchAssetsError
from batch_assets.inference.contract import SYSTEMIC_ERRORS
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.names import check_batch
from batch_assets.lake.storage import file_system, read_parquet
from batch_assets.lake.tables import Table

COMPLETION_SCHEMA = pa.schema(
    [
        ("request_hash", pa.string()),
        ("text", pa.string()),
        ("error_message", pa.string()),
        ("finish_reason", pa.string()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("input_truncated", pa.bool_()),
        ("model", pa.string()),
        ("model_version", pa.int64()),
        ("completed_at", pa.timestamp("us", tz="UTC")),
        ("seconds", pa.float64()),
    ]
)

_TRYING = "trying-"
_STOPPED = "stopped"
_FOLDER = "_completions"
_STATEMENTS = f"{_FOLDER}/_statements"


@dataclass(frozen=True)
class Completion:
    """A finished answer to a request: a text, or an error that the request itself caused."""

    request_hash: str
    text: str | None
    error_message: str | None
    finish_reason: str | None
    input_tokens: int | None
    output_tokens: int | None
    input_truncated: bool | None
    model: str | None
    model_version: int | None
    completed_at: datetime
    seconds: float | None = None


@dataclass(frozen=True)
class CompletionStore:
    """The completions of one batch under one digest, in ``<lake>/_completions/<table>/<batch>/<digest>/``.

    Every file is written once, whole, under a name that holds its number of rows.
    """

    root: str
    folder: str
    storage_options: Mapping[str, str]

    @classmethod
    def of(cls, lake: Lake, table: Table, batch: str, digest: str) -> "CompletionStore":
        """The store of a batch of a table; ``digest`` is a hexadecimal name of the model or statement."""
        folder = f"{_FOLDER}/{lake.full_name(table)}/{check_batch(batch)}/{digest[:16]}"
        return cls(lake.uri, folder, dict(lake.storage_options))

    def write(self, completions: list[Completion]) -> None:
        """Add completions as one file."""
        if not completions:
            return
        table = pa.Table.from_pylist([asdict(completion) for completion in completions], schema=COMPLETION_SCHEMA)
        path = f"{self.folder}/{uuid.uuid4()}-{len(completions)}.parquet"
        pq.write_table(table, path, filesystem=self._files())

    def rows(self, columns: list[str] | None) -> Iterator[dict[str, Any]]:
        """Some fields of all completions."""
        files = self._files()
        for path in self.paths():
            for rows in read_parquet(files, path, columns):
                yield from rows.to_pylist()

    def load(self) -> dict[str, Completion]:
        """All completions by request hash."""
        found: dict[str, Completion] = {}
        for row in self.rows(None):
            found.setdefault(row["request_hash"], Completion(**row))
        return found

    def hashes(self) -> set[str]:
        """The requests that are done."""
        return {row["request_hash"] for row in self.rows(["request_hash"])}

    def error_of_all(self) -> str | None:
        """The first error where all requests failed and are too many to blame them, else None."""
        if self.count() < SYSTEMIC_ERRORS:
            return None
        first = None
        for row in self.rows(["error_message"]):
            if row["error_message"] is None:
                return None
            first = first or row["error_message"]
        return first

    def count(self) -> int:
        """Completions so far, by the names of the files."""
        return sum(int(path.rsplit("-", 1)[1].removesuffix(".parquet")) for path in self.paths())

    @contextmanager
    def trying(self, job: str, attempt: int, request_hash: str) -> Iterator[None]:
        """Leave a sign that a request is being worked on, which only a process that dies will not take back."""
        files = self._files()
        sign = f"{self.folder}/{_TRYING}{job}-{request_hash}-{attempt}"
        pq.write_table(pa.table({"request_hash": [request_hash]}), sign, filesystem=files)
        try:
            yield
        finally:
            files.delete_file(sign)

    def tried(self, job: str) -> Counter[str]:
        """The requests that processes of a job died over, and how many did."""
        prefix = f"{_TRYING}{job}-"
        names = (path.rsplit("/", 1)[1] for path in self._all_paths(self._files()))
        return Counter(name.removeprefix(prefix).split("-")[0] for name in names if name.startswith(prefix))

    def stop(self, reason: str) -> None:
        """Leave a sign that nothing more is to be tried, not even by a task that Spark starts again."""
        pq.write_table(pa.table({"reason": [reason]}), f"{self.folder}/{_STOPPED}", filesystem=self._files())

    def stopped(self) -> str | None:
        """The reason that ``stop`` was given, None if it wasn't called."""
        files = self._files()
        path = f"{self.folder}/{_STOPPED}"
        if files.get_file_info(path).type == pafs.FileType.NotFound:
            return None
        return str(next(read_parquet(files, path)).column("reason")[0].as_py())

    def go_on(self) -> None:
        """Take the sign of ``stop`` back."""
        files = self._files()
        path = f"{self.folder}/{_STOPPED}"
        if files.get_file_info(path).type != pafs.FileType.NotFound:
            files.delete_file(path)

    @classmethod
    def of_statement(cls, lake: Lake, digest: str) -> "CompletionStore":
        """The store of a statement that somebody runs."""
        return cls(lake.uri, f"{_STATEMENTS}/{digest[:16]}", dict(lake.storage_options))

    @classmethod
    def clear_statements(cls, lake: Lake) -> None:
        """Remove the files of all statements."""
        cls(lake.uri, _STATEMENTS, dict(lake.storage_options)).clear()

    def clear(self) -> None:
        """Remove the files; what they held is in a committed table."""
        self._clear(self.folder)

    def clear_batch(self) -> None:
        """Remove the files of all models or statements for the same batch: the batch is committed."""
        self._clear(self.folder.rpartition("/")[0])

    def _clear(self, folder: str) -> None:
        files = self._files()
        for info in files.get_file_info(pafs.FileSelector(folder, allow_not_found=True, recursive=True)):
            if info.type == pafs.FileType.File:
                with suppress(FileNotFoundError):  # two runs may be at it
                    files.delete_file(info.path)

    def paths(self) -> list[str]:
        """The files of completions, below the root."""
        return [path for path in self._all_paths(self._files()) if path.endswith(".parquet")]

    def _files(self) -> pafs.FileSystem:
        return file_system(self.root, self.storage_options)

    def _all_paths(self, files: pafs.FileSystem) -> list[str]:
        return [info.path for info in files.get_file_info(pafs.FileSelector(self.folder, allow_not_found=True))]


def sweep(lake: Lake, hours: int) -> int:
    """Remove completions that nobody came back for.

    Args:
        lake: where they are.
        hours: those that are younger stay; longer than the longest run.

    Returns:
        The number of files.
    """
    files = file_system(lake.uri, dict(lake.storage_options))
    oldest = datetime.now(UTC) - timedelta(hours=hours)
    removed = 0
    for info in files.get_file_info(pafs.FileSelector(_FOLDER, allow_not_found=True, recursive=True)):
        if info.type == pafs.FileType.File and info.mtime < oldest:
            with suppress(FileNotFoundError):  # two may be at it
                files.delete_file(info.path)
                removed += 1
    return removed


def refuse_if_all_failed(store: CompletionStore, batch: str, summaries: int) -> None:
    """Refuse to commit a batch in which every request failed, and forget their errors.

    Args:
        store: what was made.
        batch: the batch.
        summaries: rows of the batch that have a text, made now or before.

    Raises:
        BatchAssetsError: none has, and too many failed to blame the rows.
    """
    error = None if summaries else store.error_of_all()
    if error is not None:
        made = store.count()
        store.clear()
        # What a server said comes after the first line, and may repeat a document.
        said, _, _ = error.partition("\n")
        raise BatchAssetsError(
            f"all {made} requests of batch {batch} failed, so nothing was committed; the first one with: {said}"
        )


@dataclass(frozen=True)
class FinishedWork:
    """Completions that need not be made again: those of this work, and those in the current output.

    ``columns`` maps columns of the output to the fields of a completion that they hold.
    """

    store: CompletionStore
    output_uri: str
    output_files: tuple[str, ...]
    storage_options: Mapping[str, str]
    columns: Mapping[str, str]

    @classmethod
    def of(
        cls, store: CompletionStore, output: BatchSnapshot, batch: str, columns: Mapping[str, str]
    ) -> "FinishedWork":
        """The finished work on one batch of an output table."""
        files = tuple(data_file.path for data_file in output.files(batch))
        return cls(store, output.uri, files, output.storage_options, dict(columns))

    def load(self) -> dict[str, Completion]:
        """All finished completions by request hash."""
        found = self.store.load()
        for path in self.output_files:
            for rows in self.read_output(path):
                for row in rows.to_pylist():
                    found.setdefault(row["request_hash"], Completion(**row))
        return found

    def read_output(self, path: str) -> Iterator[pa.RecordBatch]:
        """The completions that a file of the current output holds, in the schema of completions.

        What failed once is left out, to be tried again: the reason may have been the engine or the endpoint.
        """
        files = file_system(self.output_uri, self.storage_options)
        for rows in read_parquet(files, path, list(self.columns)):
            by_field = {self.columns[name]: rows.column(name) for name in self.columns}
            columns = [
                by_field[field.name].cast(field.type) if field.name in by_field else pa.nulls(len(rows), field.type)
                for field in COMPLETION_SCHEMA
            ]
            usable = pc.and_(pc.is_valid(by_field["request_hash"]), pc.is_null(by_field["error_message"]))
            yield pa.RecordBatch.from_arrays(columns, schema=COMPLETION_SCHEMA).filter(usable)

    def read_store(self, path: str) -> Iterator[pa.RecordBatch]:
        """The completions of one of the store's files, which an older version of this package may have written."""
        for rows in read_parquet(file_system(self.store.root, self.storage_options), path):
            columns = [
                rows.column(field.name) if field.name in rows.schema.names else pa.nulls(len(rows), field.type)
                for field in COMPLETION_SCHEMA
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=COMPLETION_SCHEMA)
