"""Count the rows of a table of answers: with an answer, with an error, without text."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import Table
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.staging import StagedFile

# The columns whose nulls are counted. An answer is null exactly where there is an error message, and unlike an answer,
# which may be a struct, an error message always has statistics.
COUNTED = ("error_message", "request_hash")


@dataclass(frozen=True)
class Counts:
    """Row counts of a table of answers.

    ``errors`` counts failed requests. A document without text makes no request, so ``no_text`` counts the rows without
    a request hash.
    """

    summaries: int = 0
    errors: int = 0
    no_text: int = 0

    @classmethod
    def of(cls, rows: int, nulls: Mapping[str, int]) -> "Counts":
        """Return the counts of a file from its number of rows and its nulls per column."""
        no_text = nulls["request_hash"]
        return cls(nulls["error_message"], rows - nulls["error_message"] - no_text, no_text)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.summaries + other.summaries, self.errors + other.errors, self.no_text + other.no_text)


def counts_of(staged: Iterable[StagedFile]) -> Counts:
    """Return the counts of a batch that is not committed yet."""
    return sum((Counts.of(file.rows, file.null_counts) for file in staged), Counts())


def check_rows(batch: str, staged: Iterable[StagedFile], expected: int, output: str) -> None:
    """Check the rows of a batch before it is committed.

    Args:
        batch: key of the batch.
        staged: its staged files.
        expected: the number of rows that the batch must have.
        output: the column of the answers.

    Raises:
        BatchAssetsError: the number of rows is wrong, or rows have neither an answer nor an error, or both.
    """
    rows = nulls = 0
    for file in staged:
        rows += file.rows
        nulls += file.null_counts[output] + file.null_counts["error_message"]
    if rows != expected:
        raise BatchAssetsError(
            f"batch {batch} must have {expected} rows, but {rows} were written; nothing was committed"
        )
    if nulls != rows:
        raise BatchAssetsError(
            f"batch {batch}: {abs(nulls - rows)} rows have neither an answer nor an error, or both; nothing was "
            "committed"
        )


@lru_cache(maxsize=4)
def counts_by_batch(table: BatchSnapshot) -> dict[str, Counts | None]:
    """Return the counts of every batch from the log's statistics; None for a batch without accurate statistics."""
    files = table.delta.add_actions()
    names = [f"null_count.{name}" for name in COUNTED]
    if not set(names) <= set(files.column_names):
        return {}
    found: dict[str, Counts | None] = {}
    for file in files.select(["path", "partition.batch", "num_records", *names]).to_pylist():
        batch, rows = file["partition.batch"], file["num_records"]
        if file["path"] in table.delta.deletion_vectors:
            rows = None  # its statistics include deleted rows
        nulls = {name: file[f"null_count.{name}"] for name in COUNTED}
        before = found.get(batch, Counts())
        if before is None or rows is None or None in nulls.values():
            found[batch] = None
        else:
            found[batch] = before + Counts.of(rows, nulls)
    return found


def no_text_by_table(lake: Lake, tables: Iterable[Table]) -> dict[str, int]:
    """Return the number of documents without text per table of answers, over all batches with statistics."""
    return {
        table.name: sum(counts.no_text for counts in counts_by_batch(lake.open(table)).values() if counts is not None)
        for table in tables
    }
