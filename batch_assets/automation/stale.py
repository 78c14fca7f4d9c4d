"""The one decision whether a batch of a table needs work."""

from collections.abc import Mapping, Set
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.lake import BatchSnapshot

_INPUT_TABLE = "input_table"


def input_version(table: BatchSnapshot, batch: str) -> int:
    """The version of a table in which a batch was last changed.

    Raises:
        BatchAssetsError: the batch is not in the table.
    """
    commit = table.last_commit(batch)
    if commit is None:
        raise BatchAssetsError(
            f"the batch {batch} is not in {table.table.name} at version {table.version}: materialize prod_data "
            "for it first"
        )
    return commit.version


def input_of(table: BatchSnapshot, batch: str) -> dict[str, Any]:
    """What a commit records of the input that it was made from: the version, and which table it is a version of.

    Raises:
        BatchAssetsError: the batch is not in the table.
    """
    return {"input_version": input_version(table, batch), _INPUT_TABLE: table.table_id}


def is_stale(output: BatchSnapshot, batch: str, recorded: Mapping[str, Any], newest_input: int) -> bool:
    """Whether the last commit of a batch doesn't record what a run would record now.

    A run that works on an older version of the input than the last commit did has been overtaken: for it, the
    batch is not stale.

    Args:
        output: the table, as it is now.
        batch: key of the batch.
        recorded: what a commit of a run made now would record, as far as a difference calls for a new run;
            ``input_version`` among it.
        newest_input: the newest version of the input; a commit that records a later one was made from a table
            that is gone.
    """
    commit = output.last_commit(batch)
    if commit is None:
        return True
    # Commits of older versions of this package don't say which table it was.
    table = commit.metadata.get(_INPUT_TABLE, recorded.get(_INPUT_TABLE))
    if table != recorded.get(_INPUT_TABLE):
        return True
    if recorded["input_version"] < commit.metadata.get("input_version", -1) <= newest_input:
        return False
    return any(commit.metadata.get(key) != value for key, value in recorded.items() if key != _INPUT_TABLE)


def stale_batches(
    documents: BatchSnapshot,
    output: BatchSnapshot,
    busy: Set[str],
    rescored: Set[str] = frozenset(),
    champion: int | None = None,
) -> list[str]:
    """Batches whose last commit in the output doesn't record the input as it is now, in their order.

    Args:
        documents: ``m4_1_prod_data`` as it is now.
        output: ``m4_1_batch_inference`` as it is now.
        busy: batches of runs that are queued or running.
        rescored: batches that a new champion makes stale.
        champion: number of the champion's version.
    """
    stale = []
    for batch in _batches(documents, output, busy):
        expected = input_of(documents, batch)
        if batch in rescored and champion is not None:
            expected["model_version"] = champion
        if is_stale(output, batch, expected, documents.version):
            stale.append(batch)
    return stale


def unfinished_batches(
    documents: BatchSnapshot,
    scored: BatchSnapshot,
    answered: BatchSnapshot,
    quality: BatchSnapshot,
    busy: Set[str],
) -> list[str]:
    """Scored batches whose answers or figures are not those of what they are now, because a run failed after scoring.

    Args:
        documents: ``m4_1_prod_data``.
        scored: ``m4_1_batch_inference``.
        answered: ``ai_query_inference``.
        quality: ``summary_quality``.
        busy: batches of runs that are queued or running.
    """
    return [
        batch
        for batch in _batches(documents, scored, busy)
        if scored.last_commit(batch) is not None
        and (
            is_stale(answered, batch, input_of(documents, batch), documents.version)
            or is_stale(quality, batch, measured_from(scored, answered, batch), scored.version)
        )
    ]


def measured_from(scored: BatchSnapshot, answered: BatchSnapshot, batch: str) -> dict[str, Any]:
    """What a commit of ``summary_quality`` records of the two tables that it was made from.

    Raises:
        BatchAssetsError: the batch is not in one of them.
    """
    return {**input_of(scored, batch), "ai_query_version": input_version(answered, batch)}


def _batches(documents: BatchSnapshot, output: BatchSnapshot, busy: Set[str]) -> list[str]:
    there = documents.batches()
    # Of a batch that was deleted as a whole, the summaries are still there.
    deleted = [batch for batch in sorted({*output.batches()} - {*there}) if documents.last_commit(batch) is not None]
    return [batch for batch in (*there, *deleted) if batch not in busy]
