"""Finished completions of a run: immutable files that survive a killed run, so nothing is paid for twice."""

import json
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

from batch_assets.engines.contract import SYSTEMIC_ERRORS, Completion, ErrorClass, RowError
from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import Table
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.storage import file_system, read_parquet
from batch_assets.names import check_batch

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
        ("error_class", pa.string()),
        ("attempts", pa.int64()),
    ]
)

_ATTEMPT_PREFIX = "trying-"
_STOP_MARKER = "stopped"
_FOLDER = "_completions"
_STATEMENTS = f"{_FOLDER}/_statements"


@dataclass(frozen=True)
class CompletionStore:
    """The completions of one batch under one digest, in ``<lake>/_completions/<table>/<batch>/<digest>/``.

    Each file is written once, as a whole. Its name contains its number of rows.
    """

    root: str
    folder: str
    storage_options: Mapping[str, str]

    @classmethod
    def of(cls, lake: Lake, table: Table, batch: str, digest: str) -> "CompletionStore":
        """The store of a batch of a table; ``digest`` identifies the model or statement, in hexadecimal."""
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
        """Read all completions as dictionaries with the given columns, or with all columns for None."""
        files = self._files()
        for path in self.paths():
            for rows in read_parquet(files, path, columns):
                yield from rows.to_pylist()

    def load(self) -> dict[str, Completion]:
        """Load the finished completions by request hash."""
        found: dict[str, Completion] = {}
        for row in self.rows(None):
            completion = Completion(**row)
            if completion.is_finished:
                found.setdefault(completion.request_hash, completion)
        return found

    def hashes(self) -> set[str]:
        """Hashes of the finished requests."""
        return set(self.load())

    def error_if_all_failed(self) -> str | None:
        """The first error if all requests failed and there are too many to blame the documents, else None."""
        if self.count() < SYSTEMIC_ERRORS:
            return None
        first = None
        has_other_cause = False
        for row in self.rows(["error_message", "error_class"]):
            if row["error_message"] is None:
                return None
            first = first or row["error_message"]
            # A model or a machine may be the reason why workers die.
            if row["error_class"] != ErrorClass.DOCUMENT or row["error_message"] == RowError.WORKER_DIED:
                has_other_cause = True
        return first if has_other_cause else None

    def blamed(self) -> list[str]:
        """Paths of the files with a document that killed its workers; each is in a file of its own."""
        files = self._files()
        return [
            path
            for path in self.paths()
            if path.endswith("-1.parquet")
            for rows in read_parquet(files, path, ["error_message"])
            if rows.column("error_message").to_pylist() == [RowError.WORKER_DIED.value]
        ]

    def forget_blamed(self) -> None:
        """Remove the documents that killed their workers, so that the next run scores them again."""
        for path in self.blamed():
            self._files().delete_file(path)

    def count(self) -> int:
        """Number of completions, according to the file names."""
        return sum(int(path.rsplit("-", 1)[1].removesuffix(".parquet")) for path in self.paths())

    @contextmanager
    def attempting(self, job: str, attempt: int, request_hash: str) -> Iterator[None]:
        """Mark a request as in progress. The marker stays behind only if the process dies."""
        files = self._files()
        marker = f"{self.folder}/{_ATTEMPT_PREFIX}{job}-{request_hash}-{attempt}"
        pq.write_table(pa.table({"request_hash": [request_hash]}), marker, filesystem=files)
        try:
            yield
        finally:
            files.delete_file(marker)

    def attempts(self, job: str) -> Counter[str]:
        """Requests that killed processes of a job, with the number of processes that died."""
        prefix = f"{_ATTEMPT_PREFIX}{job}-"
        names = (path.rsplit("/", 1)[1] for path in self._all_paths(self._files()))
        return Counter(name.removeprefix(prefix).split("-")[0] for name in names if name.startswith(prefix))

    def stop(self, reason: str) -> None:
        """Stop all further requests, even in tasks that Spark restarts."""
        pq.write_table(pa.table({"reason": [reason]}), f"{self.folder}/{_STOP_MARKER}", filesystem=self._files())

    def stopped(self) -> str | None:
        """The reason passed to ``stop``, None if it wasn't called."""
        files = self._files()
        path = f"{self.folder}/{_STOP_MARKER}"
        if files.get_file_info(path).type == pafs.FileType.NotFound:
            return None
        return str(next(read_parquet(files, path)).column("reason")[0].as_py())

    def clear_stop(self) -> None:
        """Undo ``stop``."""
        files = self._files()
        path = f"{self.folder}/{_STOP_MARKER}"
        if files.get_file_info(path).type != pafs.FileType.NotFound:
            files.delete_file(path)

    @classmethod
    def of_statement(cls, lake: Lake, digest: str) -> "CompletionStore":
        """The store of a SQL statement."""
        return cls(lake.uri, f"{_STATEMENTS}/{digest[:16]}", dict(lake.storage_options))

    @classmethod
    def clear_statements(cls, lake: Lake) -> None:
        """Remove the files of all statements."""
        cls(lake.uri, _STATEMENTS, dict(lake.storage_options)).clear()

    @classmethod
    def clear_table(cls, lake: Lake, table: str) -> None:
        """Remove the files of all batches of the table with this name."""
        cls(lake.uri, f"{_FOLDER}/{lake.catalog}.{lake.schema}.{table}", dict(lake.storage_options)).clear()

    def clear(self) -> None:
        """Remove the files of this store."""
        self._clear(self.folder)

    def clear_batch(self) -> None:
        """Remove the files of all models or statements for the same batch, once the batch is committed."""
        self._clear(self.folder.rpartition("/")[0])

    def _clear(self, folder: str) -> None:
        files = self._files()
        for info in files.get_file_info(pafs.FileSelector(folder, allow_not_found=True, recursive=True)):
            if info.type == pafs.FileType.File:
                with suppress(FileNotFoundError):  # another run may have removed it
                    files.delete_file(info.path)

    def paths(self) -> list[str]:
        """Paths of the completion files, relative to the root."""
        return [path for path in self._all_paths(self._files()) if path.endswith(".parquet")]

    def _files(self) -> pafs.FileSystem:
        return file_system(self.root, self.storage_options)

    def _all_paths(self, files: pafs.FileSystem) -> list[str]:
        return [info.path for info in files.get_file_info(pafs.FileSelector(self.folder, allow_not_found=True))]


def remove_abandoned(lake: Lake, hours: int) -> int:
    """Remove the completions of runs that were never resumed.

    Args:
        lake: the lake that holds them.
        hours: minimum age of the removed files; must exceed the longest run.

    Returns:
        The number of removed files.
    """
    files = file_system(lake.uri, dict(lake.storage_options))
    oldest = datetime.now(UTC) - timedelta(hours=hours)
    removed = 0
    for info in files.get_file_info(pafs.FileSelector(_FOLDER, allow_not_found=True, recursive=True)):
        if info.type == pafs.FileType.File and info.mtime < oldest:
            with suppress(FileNotFoundError):  # another process may have removed it
                files.delete_file(info.path)
                removed += 1
    return removed


def refuse_if_all_failed(store: CompletionStore, batch: str, summaries: int) -> None:
    """Refuse to commit a batch in which every request failed, and discard the errors.

    Args:
        store: completions of the batch.
        batch: key of the batch.
        summaries: number of rows of the batch with an answer, from this run or an earlier one.

    Raises:
        BatchAssetsError: no row has an answer, and too many failed to blame the documents.
    """
    error = None if summaries else store.error_if_all_failed()
    if error is not None:
        failed = store.count()
        store.clear()
        # The server's response follows the first line, and may repeat a document.
        first_line, _, _ = error.partition("\n")
        raise BatchAssetsError(
            f"all {failed} requests of batch {batch} failed, so nothing was committed; the first error: {first_line}"
        )


@dataclass(frozen=True)
class FinishedWork:
    """Completions that can be reused: those in the store, and those in the current output.

    Failed rows of the output are requested again, unless the same request would fail again. ``retry_errors`` requests
    all of them again. ``columns`` maps output columns to the completion fields that they hold. ``typed_column`` is the
    one whose structs are read as JSON.
    """

    store: CompletionStore
    output_uri: str
    output_files: tuple[str, ...]
    storage_options: Mapping[str, str]
    columns: Mapping[str, str]
    typed_column: str | None = None
    retry_errors: bool = False

    @classmethod
    def of(
        cls, store: CompletionStore, output: BatchSnapshot, batch: str, *, retry_errors: bool = False
    ) -> "FinishedWork":
        """The finished work on one batch of an output table.

        Raises:
            BatchAssetsError: the table uses features that this package can't write. Its files may then contain deleted
                rows, and it is better to know before the first request.
        """
        output.delta.check_writable()
        files = tuple(data_file.path for data_file in output.files(batch))
        table = output.table
        typed = table.output_column if table.has_typed_output else None
        return cls(store, output.uri, files, output.storage_options, table.completion_fields, typed, retry_errors)

    def load(self) -> tuple[dict[str, Completion], Counter[str]]:
        """Load the finished completions by request hash, and how often other requests ended in a service error."""
        found, attempts = self.store.load(), Counter[str]()
        for path in self.output_files:
            for rows in self.read_output(path):
                for row in rows.to_pylist():
                    completion = Completion(**row)
                    if completion.is_finished and not (self.retry_errors and completion.error_message):
                        found.setdefault(completion.request_hash, completion)
                    else:
                        attempts[completion.request_hash] = completion.attempts or 0
        return found, attempts

    def read_output(self, path: str) -> Iterator[pa.RecordBatch]:
        """Read the completions in a file of the current output."""
        files = file_system(self.output_uri, self.storage_options)
        for rows in read_parquet(files, path, list(self.columns)):
            by_field = {
                field: _as_json(rows.column(name)) if name == self.typed_column else rows.column(name)
                for name, field in self.columns.items()
                if name in rows.schema.names  # files from before a column was added lack it
            }
            columns = [
                by_field[field.name].cast(field.type) if field.name in by_field else pa.nulls(len(rows), field.type)
                for field in COMPLETION_SCHEMA
            ]
            has_request = pc.is_valid(by_field["request_hash"])
            yield pa.RecordBatch.from_arrays(columns, schema=COMPLETION_SCHEMA).filter(has_request)

    def read_store(self, path: str) -> Iterator[pa.RecordBatch]:
        """Read the completions in a file of the store, possibly written by an older version of this package."""
        for rows in read_parquet(file_system(self.store.root, self.storage_options), path):
            columns = [
                rows.column(field.name) if field.name in rows.schema.names else pa.nulls(len(rows), field.type)
                for field in COMPLETION_SCHEMA
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=COMPLETION_SCHEMA)


def _as_json(structs: pa.Array) -> pa.Array:
    texts = (
        None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in structs.to_pylist()
    )
    return pa.array(list(texts), pa.string())
