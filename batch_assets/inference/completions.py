"""Finished completions of a run: immutable files that survive a killed run, and are never paid for twice."""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

import pyarrow as pa
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
    ]
)


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
        folder = f"_completions/{lake.full_name(table)}/{check_batch(batch)}/{digest[:16]}"
        return cls(lake.uri, folder, dict(lake.storage_options))

    def write(self, completions: list[Completion]) -> None:
        """Add completions as one file."""
        if not completions:
            return
        table = pa.Table.from_pylist([asdict(completion) for completion in completions], schema=COMPLETION_SCHEMA)
        path = f"{self.folder}/{uuid.uuid4()}-{len(completions)}.parquet"
        pq.write_table(table, path, filesystem=self._files())

    def load(self) -> dict[str, Completion]:
        """All completions by request hash."""
        files = self._files()
        found: dict[str, Completion] = {}
        for path in self._paths(files):
            for rows in read_parquet(files, path):
                for row in rows.to_pylist():
                    found.setdefault(row["request_hash"], Completion(**row))
        return found

    def count(self) -> int:
        """Completions so far, by the names of the files."""
        return sum(int(path.rsplit("-", 1)[1].removesuffix(".parquet")) for path in self._paths(self._files()))

    def clear(self) -> None:
        """Remove the files; what they held is in a committed table."""
        files = self._files()
        for path in self._paths(files):
            files.delete_file(path)

    def _files(self) -> pafs.FileSystem:
        return file_system(self.root, self.storage_options)

    def _paths(self, files: pafs.FileSystem) -> Iterable[str]:
        selector = pafs.FileSelector(self.folder, allow_not_found=True)
        return [info.path for info in files.get_file_info(selector) if info.path.endswith(".parquet")]


def refuse_if_all_failed(store: CompletionStore, batch: str) -> None:
    """Refuse to commit a batch in which every request of this run failed, and forget their errors.

    Raises:
        BatchAssetsError: all failed, and there are too many to blame the rows.
    """
    made = list(store.load().values())
    if len(made) >= SYSTEMIC_ERRORS and all(completion.error_message for completion in made):
        store.clear()
        raise BatchAssetsError(
            f"all {len(made)} requests of batch {batch} failed, so nothing was committed; the first one with: "
            f"{made[0].error_message}"
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
        files = file_system(self.output_uri, self.storage_options)
        for path in self.output_files:
            for rows in read_parquet(files, path, list(self.columns)):
                for row in rows.to_pylist():
                    # What failed once is tried again: the reason may have been the engine or the endpoint.
                    if row["request_hash"] is not None and row["error_message"] is None:
                        fields = dict.fromkeys(COMPLETION_SCHEMA.names) | {self.columns[key]: row[key] for key in row}
                        found.setdefault(row["request_hash"], Completion(**fields))
        return found
