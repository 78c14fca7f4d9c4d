"""Count the rows of a table of summaries: with a summary, with an error, without text."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.staging import StagedFile
from batch_assets.lake.tables import AI_QUERY_INFERENCE, BATCH_INFERENCE

# The columns whose nulls are counted.
COUNTED = ("generated_summary", "request_hash")


@dataclass(frozen=True)
class Counts:
    """Rows of m4_1_batch_inference or ai_query_inference.

    A document without text makes no request, so ``no_text`` counts the rows without a request hash. ``errors`` counts
    the requests that failed.
    """

    summaries: int = 0
    errors: int = 0
    no_text: int = 0

    @classmethod
    def of(cls, rows: int, nulls: Mapping[str, int]) -> "Counts":
        """Counts of a file with some rows and, by column, some nulls."""
        no_text = nulls["request_hash"]
        return cls(rows - nulls["generated_summary"], nulls["generated_summary"] - no_text, no_text)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.summaries + other.summaries, self.errors + other.errors, self.no_text + other.no_text)


def counts_of(staged: Iterable[StagedFile]) -> Counts:
    """Counts of a batch that is not committed yet."""
    return sum((Counts.of(file.rows, file.null_counts) for file in staged), Counts())


def check_rows(batch: str, staged: Iterable[StagedFile], expected: int) -> None:
    """Check that a batch may be committed.

    Args:
        batch: key of the batch.
        staged: its files.
        expected: the number of rows that it must have.

    Raises:
        BatchAssetsError: rows are missing, or some have neither a summary nor an error.
    """
    rows = nulls = 0
    for file in staged:
        rows += file.rows
        nulls += file.null_counts["generated_summary"] + file.null_counts["error_message"]
    if rows != expected:
        raise BatchAssetsError(
            f"batch {batch} must have {expected} rows, but {rows} were written; nothing was committed"
        )
    if nulls != rows:
        raise BatchAssetsError(
            f"batch {batch}: {abs(nulls - rows)} rows have neither a summary nor an error, or both; nothing was "
            "committed"
        )


def counts_by_batch(table: BatchSnapshot) -> dict[str, Counts | None]:
    """Counts of every batch, from the statistics in the table's log; None for a batch where a writer omitted them."""
    files = table.delta.add_actions()
    names = [f"null_count.{name}" for name in COUNTED]
    if not set(names) <= set(files.column_names):
        return {}
    found: dict[str, Counts | None] = {}
    for file in files.select(["partition.batch", "num_records", *names]).to_pylist():
        batch, rows = file["partition.batch"], file["num_records"]
        nulls = {name: file[f"null_count.{name}"] for name in COUNTED}
        before = found.get(batch, Counts())
        if before is None or rows is None or None in nulls.values():
            found[batch] = None
        else:
            found[batch] = before + Counts.of(rows, nulls)
    return found


def no_text_by_table(lake: Lake) -> dict[str, int]:
    """By table of summaries, its documents without text, over all batches whose statistics are known."""
    return {
        table.name: sum(counts.no_text for counts in counts_by_batch(lake.open(table)).values() if counts is not None)
        for table in (BATCH_INFERENCE, AI_QUERY_INFERENCE)
    }
