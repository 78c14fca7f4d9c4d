"""Current state for sensors and schedules: table snapshots, the champion and the stale batches."""

import time

import dagster as dg

from batch_assets.graph.partitions import busy_batches, known_batches
from batch_assets.lake.contracts import Table
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings
from batch_assets.sources.documents import newest_documents
from batch_assets.staleness import batches_to_retry, input_version, stale_batches
from batch_assets.tasks.output_tables import tables_of

# The last snapshot of each table in this process, so that the next tick reads only new log entries.
_last_snapshots: dict[str, BatchSnapshot] = {}


def current_snapshot(lake: Lake, table: Table) -> BatchSnapshot:
    """Open the table at its newest version, reading only the log entries added since the last call."""
    return _with_history(lake.table_uri(table), lake.open(table))


def current_documents(lake: Lake, settings: Settings) -> BatchSnapshot:
    """Open the documents of a pipeline like ``current_snapshot``.

    Raises:
        BatchAssetsError: the table that is read in place is missing or can't be used.
    """
    tables = tables_of(settings)
    place = f"{lake.table_uri(tables.documents)} of {lake.table_uri(tables.scored)}"
    return _with_history(place, newest_documents(lake, settings, tables, _last_snapshots.get(place)))


def _with_history(place: str, current: BatchSnapshot) -> BatchSnapshot:
    previous = _last_snapshots.get(place)
    if previous is not current and (previous is None or not current.reuse(previous)):
        current.read_whole_log()
    _last_snapshots[place] = current
    return current


def stale_batches_now(
    instance: dg.DagsterInstance,
    settings: Settings,
    documents: BatchSnapshot,
    output: BatchSnapshot,
    answered: BatchSnapshot | None,
    champion: int | None,
) -> dict[str, object]:
    """Map each batch that needs work now to the state that causes it: table ids and versions.

    A batch needs work if it is stale, or has failed rows whose next request is due.

    Args:
        instance: Dagster instance with the registered batches and the runs.
        settings: settings of the pipeline.
        documents: its documents.
        output: its answers by the registered model.
        answered: its answers by an endpoint, None without an endpoint.
        champion: version number of the champion, None if there is no champion.
    """
    known = known_batches(instance, settings.pipeline)
    rescored = {"all": set(known), "latest": set(known[-1:]), "none": set[str]()}[settings.rescore]
    busy, model = busy_batches(instance, settings.pipeline), settings.registered_model
    stale = stale_batches(documents, output, busy, rescored, champion, model)
    tables = [documents.table_id, output.table_id]
    reasons: dict[str, object] = {}
    for batch in stale:
        commit = output.last_commit(batch)
        expected = [input_version(documents, batch), champion if batch in rescored else None]
        reasons[batch] = [*tables, *expected, commit.version if commit else None]
    outputs = [output, *([] if answered is None else [answered])]
    for batch, times in batches_to_retry(documents, outputs, busy, settings.error_attempts, time.time()).items():
        if times and batch not in reasons:
            versions = [commit.version if (commit := table.last_commit(batch)) else None for table in outputs]
            reasons[batch] = [*tables, *versions, f"retry {times}"]
    return reasons


def champion_number(registry: ModelRegistry, settings: Settings) -> int | None:
    """The version number of the champion, None if there is no champion."""
    from batch_assets.models.registry import CHAMPION

    version = registry.model(settings).with_alias(CHAMPION)
    return None if version is None else version.number
