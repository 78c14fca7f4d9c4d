"""Decide whether a batch of a table is stale, or has failed rows to request again."""

import math
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from typing import Any

from batch_assets.engines.contract import ErrorClass
from batch_assets.errors import BatchAssetsError
from batch_assets.lake.commit_log import Commit
from batch_assets.lake.counts import counts_by_batch
from batch_assets.lake.lake import FAILURES, NO_FILES, BatchSnapshot
from batch_assets.settings import Settings

_INPUT_TABLE = "input_table"
# A digest of the files, and whether the log no longer has the commit that last changed the batch.
_INPUT_FILES, _INPUT_LOST = "input_files", "input_lost"
# Versions of two registered models may have the same number.
MODEL = "model"
# Service errors are requested again after this many seconds, doubled by every attempt.
_FIRST_DELAY, _LONGEST_DELAY = 300.0, 86_400.0


def input_version(table: BatchSnapshot, batch: str) -> int:
    """The table version that last changed a batch.

    Raises:
        BatchAssetsError: the batch is not in the table.
    """
    commit = table.last_commit(batch)
    if commit is None:
        raise BatchAssetsError(
            f"batch {batch} is not in {table.table.name} at version {table.version}: materialize its "
            f"{'answers' if table.table.completion_fields else 'documents'} first"
        )
    return commit.version


def input_metadata(table: BatchSnapshot, batch: str) -> dict[str, Any]:
    """Commit metadata that identifies the input of a batch: the table version and the table id.

    Raises:
        BatchAssetsError: the batch is not in the table.
    """
    commit = table.last_commit(batch)
    lost = {_INPUT_LOST: True} if commit is not None and commit.is_lost else {}
    return {
        "input_version": input_version(table, batch),
        _INPUT_TABLE: table.table_id,
        _INPUT_FILES: table.files_digest(batch),
        **lost,
    }


def is_stale(output: BatchSnapshot, batch: str, recorded: Mapping[str, Any], newest_input: int) -> bool:
    """Whether the metadata of a batch's last commit differs from what a run would record now.

    If the last commit used a newer input version than this run, another run has superseded it: the batch is not stale.

    Args:
        output: current snapshot of the output table.
        batch: key of the batch.
        recorded: metadata that a run would record now, limited to keys whose difference requires a new run; must have
            ``input_version``.
        newest_input: newest version of the input; a commit with a later version used a table that no longer exists.
    """
    commit = output.last_commit(batch)
    if commit is None:
        return True
    # Commits of older releases don't record the table id.
    table = commit.metadata.get(_INPUT_TABLE, recorded.get(_INPUT_TABLE))
    if table != recorded.get(_INPUT_TABLE):
        return True
    if recorded["input_version"] < commit.metadata.get("input_version", -1) <= newest_input:
        return False
    # Nor do they record the model's name.
    known = {MODEL: recorded.get(MODEL), **commit.metadata}
    compared = recorded.keys() - {_INPUT_TABLE, _INPUT_FILES, _INPUT_LOST}
    if recorded.get(_INPUT_LOST):
        # The version is unknown: the files tell.
        if commit.metadata.get(_INPUT_FILES) == recorded[_INPUT_FILES]:
            compared.discard("input_version")
        elif recorded[_INPUT_FILES] == NO_FILES:
            return True
    return any(known.get(key) != recorded[key] for key in compared)


def stale_batches(
    documents: BatchSnapshot,
    output: BatchSnapshot,
    busy: Set[str],
    rescored: Set[str] = frozenset(),
    champion: int | None = None,
    model: str | None = None,
) -> list[str]:
    """Batches whose last output commit does not match the current input, in order.

    Args:
        documents: current snapshot of the documents.
        output: current snapshot of the answers.
        busy: batches of runs that are queued or running.
        rescored: batches that a new champion makes stale.
        champion: version number of the champion.
        model: name of its registered model.
    """
    stale = []
    for batch in _batches(documents, output, busy):
        expected = input_metadata(documents, batch)
        if batch in rescored and champion is not None:
            expected |= {"model_version": champion, MODEL: model}
        if is_stale(output, batch, expected, documents.version):
            stale.append(batch)
    return stale


def unfinished_batches(
    documents: BatchSnapshot,
    scored: BatchSnapshot,
    answered: BatchSnapshot | None,
    quality: BatchSnapshot,
    busy: Set[str],
) -> list[str]:
    """Scored batches whose ``ai_query`` answers or quality metrics are outdated because a run failed after scoring.

    Args:
        documents: the documents.
        scored: the answers of the registered model.
        answered: the answers of ``ai_query``, None if the pipeline has no endpoint.
        quality: the measures.
        busy: batches of runs that are queued or running.
    """
    return [
        batch
        for batch in _batches(documents, scored, busy)
        if scored.last_commit(batch) is not None
        and (
            (answered is not None and is_unanswered(documents, answered, batch))
            or is_unmeasured(scored, answered, quality, batch)
        )
    ]


def is_unanswered(documents: BatchSnapshot, answered: BatchSnapshot, batch: str) -> bool:
    """Whether the ``ai_query`` answers of a batch are missing or outdated."""
    return is_stale(answered, batch, input_metadata(documents, batch), documents.version)


def is_unmeasured(scored: BatchSnapshot, answered: BatchSnapshot | None, quality: BatchSnapshot, batch: str) -> bool:
    """Whether the quality metrics of a batch are missing or outdated; they are if there are no answers yet."""
    if any(table.last_commit(batch) is None for table in (scored, answered) if table is not None):
        return True
    return is_stale(quality, batch, quality_input_metadata(scored, answered, batch), scored.version)


class Need(Enum):
    """What a run does with a batch of answers."""

    NOTHING = "it is up to date"
    FAILED_ROWS = "failed rows are requested again"
    EVERYTHING = "its input or what decides its answers has changed"


def need_of(
    output: BatchSnapshot, batch: str, recorded: Mapping[str, Any], newest_input: int, settings: Settings
) -> Need:
    """What a run does with a batch of answers.

    Args:
        output: current snapshot of the answers.
        batch: key of the batch.
        recorded: as in ``is_stale``.
        newest_input: as in ``is_stale``.
        settings: how often the request of a row may end in a service error, and whether to retry all errors.
    """
    if is_stale(output, batch, recorded, newest_input):
        return Need.EVERYTHING
    commit = output.last_commit(batch)
    if commit is None or commit.metadata.get("input_version", -1) > recorded["input_version"]:
        return Need.NOTHING  # a newer run has superseded this one
    if settings.retry_errors and (counts := counts_by_batch(output).get(batch)) is not None:
        has_failed_rows = counts.errors > 0
    else:
        has_failed_rows = bool(_waiting_rows(commit, settings.error_attempts))
    return Need.FAILED_ROWS if has_failed_rows else Need.NOTHING


def batches_to_retry(
    documents: BatchSnapshot, outputs: Sequence[BatchSnapshot], busy: Set[str], attempts: int, now: float
) -> dict[str, int]:
    """Batches with service errors that are requested again, and how many times that has been due.

    The first time is minutes after the commit, and each time is after twice as long: a run may fail before it commits.

    Args:
        documents: current snapshot of the documents.
        outputs: current snapshots of the tables of answers.
        busy: batches of runs that are queued or running.
        attempts: how often the request of a row may end in a service error.
        now: the time in seconds since 1970.
    """
    found: dict[str, int] = {}
    for output in outputs:
        for batch in _batches(documents, output, busy):
            commit = output.last_commit(batch)
            waiting = None if commit is None else _waiting_rows(commit, attempts)
            if commit is not None and waiting:
                delay = min(_FIRST_DELAY * 2 ** min(waiting), _LONGEST_DELAY)
                times = 0 if now < commit.seconds + delay else 1 + int(math.log2((now - commit.seconds) / delay))
                found[batch] = max(times, found.get(batch, 0))
    return found


def waiting_rows(output: BatchSnapshot, batch: str, attempts: int) -> int:
    """The number of rows of a batch with a service error that are requested again; ``attempts`` is the limit."""
    commit = output.last_commit(batch)
    return 0 if commit is None else sum(_waiting_rows(commit, attempts).values())


def _waiting_rows(commit: Commit, attempts: int) -> dict[int, int]:
    """The rows with a service error that may be requested again: their number by attempts so far."""
    found = {}
    for error_class, used, rows in commit.metadata.get(FAILURES, []):
        if error_class == ErrorClass.SERVICE and (used or 0) < attempts:
            found[used or 0] = rows
    return found


def quality_input_metadata(scored: BatchSnapshot, answered: BatchSnapshot | None, batch: str) -> dict[str, Any]:
    """Commit metadata that identifies the inputs of the measures.

    Raises:
        BatchAssetsError: the batch is not in one of the tables.
    """
    by_endpoint = {} if answered is None else {"ai_query_version": input_version(answered, batch)}
    return {**input_metadata(scored, batch), **by_endpoint}


def _batches(documents: BatchSnapshot, output: BatchSnapshot, busy: Set[str]) -> list[str]:
    existing = documents.batches()
    # A batch that was deleted from the documents still has its summaries.
    deleted = [batch for batch in sorted({*output.batches()} - {*existing}) if documents.last_commit(batch) is not None]
    return [batch for batch in (*existing, *deleted) if batch not in busy]
