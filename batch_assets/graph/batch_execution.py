"""Run an asset batch by batch: each batch is recorded separately, and a failed batch does not stop the others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from batch_assets.errors import reason
from batch_assets.resources.dagster_internals import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    DEFAULT_DATA_VERSION,
    NULL_EVENT_POINTER,
    SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)

# Materializations searched for the pinned version of a batch; if none of them has it, the newest one is used.
_MAX_RECORDS = 10
# Observations searched for the assets in which batches failed.
_MAX_OBSERVATIONS = 1000
# Metadata key of the observation that records the failed rows of a batch.
FAILED_ROWS = "failed_rows"
# Metadata key of the observation that records a failed batch.
_FAILURE_KEY = "failed"
# The last asset fails the run, but the batches failed in an earlier one, so a retry must start at the first step.
_RETRY_ALL_STEPS = {"dagster/retry_strategy": "ALL_STEPS"}


@dataclass(frozen=True)
class BatchOutcome:
    """The current state of a batch.

    ``version`` is the table version that last changed the batch, ``inputs`` the data version of each upstream asset.
    ``failed_rows`` is recorded as an observation, so that people can send alerts: the number of rows by the class of
    the error, ``all`` of them, and those that are ``requested_again`` after a while.
    """

    version: int
    metadata: Mapping[str, Any]
    inputs: Mapping[dg.AssetKey, int | str] = field(default_factory=dict)
    failed_rows: Mapping[str, int] = field(default_factory=dict)


def each_batch(context: dg.AssetExecutionContext, work: Callable[[str], BatchOutcome]) -> dg.MaterializeResult[None]:
    """Process every batch of the run; a failed batch does not stop the others, in this asset or downstream.

    Each batch is recorded as materialized as soon as it is done, even if the run fails later. Dagster starts nothing
    after a failed step. So an asset that has downstream assets records its failed batches without failing, the
    downstream assets skip them, and the last asset fails the run.

    Args:
        context: context of the asset.
        work: processes and commits the batch with the given key.

    Raises:
        dagster.Failure: batches failed, and no downstream asset of the run continues with the others.
    """
    failed_before = failed_upstream(context)
    failed: dict[str, str] = {}
    for batch in context.partition_keys:
        if batch in failed_before:
            context.log.warning(f"batch {batch} skipped: it failed in {failed_before[batch].partition(': ')[0]}")
            failed[batch] = failed_before[batch]
            continue
        try:
            done = work(batch)
        except Exception as error:  # reported in the Failure below, or by the run's last asset
            failed[batch] = reason(error)
            context.log.error(f"batch {batch} failed: {failed[batch]}", exc_info=True)
            context.log_event(
                dg.AssetObservation(context.asset_key, partition=batch, metadata={_FAILURE_KEY: failed[batch]})
            )
            continue
        tags = _version_tags(context, batch, done)
        context.log_event(
            dg.AssetMaterialization(context.asset_key, partition=batch, metadata=done.metadata, tags=tags)
        )
        if done.failed_rows:
            failures = {FAILED_ROWS: dict(done.failed_rows)}
            context.log_event(dg.AssetObservation(context.asset_key, partition=batch, metadata=failures))
    if failed and (len(failed) == len(context.partition_keys) or not _has_downstream(context)):
        reasons = "; ".join(f"{batch}: {reason}" for batch, reason in failed.items())
        raise dg.Failure(
            f"{len(failed)} of {len(context.partition_keys)} batches failed ({reasons})", allow_retries=True
        )
    if failed:
        context.instance.add_run_tags(context.run_id, _RETRY_ALL_STEPS)
    # Without this, Dagster would record all batches of the run again, with one data version for all of them. See
    # _log_materialization_or_observation_events_for_asset in Dagster's execute_step.py.
    return dg.MaterializeResult(metadata={SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True})


def failed_upstream(context: dg.AssetExecutionContext) -> dict[str, str]:
    """Batches that failed in an upstream asset during this run, with the asset and the reason."""
    graph = context.job_def.asset_layer.asset_graph
    ancestors = graph.get_ancestor_asset_keys(context.asset_key)
    failed: dict[str, str] = {}
    for observed in _failures(context.instance, context.run_id):
        if observed.asset_key in ancestors:
            why = f"{observed.asset_key.to_user_string()}: {observed.metadata[_FAILURE_KEY].value}"
            failed.setdefault(str(observed.partition), why)
    return failed


def _failures(instance: dg.DagsterInstance, run_id: str) -> Iterator[dg.AssetObservation]:
    """The observations of a run that record a failed batch."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION):
        event = entry.dagster_event
        observed = event.asset_observation_data.asset_observation if event else None
        if observed is not None and _FAILURE_KEY in observed.metadata:
            yield observed


def failed_assets(
    instance: dg.DagsterInstance, keys: Sequence[dg.AssetKey], runs: Mapping[str, str]
) -> dict[str, set[dg.AssetKey]]:
    """The assets in which batches failed during a run.

    Args:
        instance: Dagster's storage.
        keys: assets to look at.
        runs: the id of the run by batch.
    """
    failed: dict[str, set[dg.AssetKey]] = {}
    for key in keys:
        if not runs:
            break
        # Not from the logs of the runs: Dagster creates a file for each run that is asked for.
        only = dg.AssetRecordsFilter(key, asset_partitions=list(runs))
        for record in instance.fetch_observations(only, limit=_MAX_OBSERVATIONS).records:
            observed = record.asset_observation
            batch = None if observed is None else str(observed.partition)
            if observed is not None and _FAILURE_KEY in observed.metadata and runs[str(batch)] == record.run_id:
                failed.setdefault(str(batch), set()).add(key)
    return failed


def _has_downstream(context: dg.AssetExecutionContext) -> bool:
    """Whether the run includes a partitioned asset directly downstream of this one."""
    graph = context.job_def.asset_layer.asset_graph
    steps = context.run.step_keys_to_execute
    return any(
        graph.get(key).partitions_def is not None and (steps is None or key.to_python_identifier() in steps)
        for key in graph.get(context.asset_key).child_keys & set(graph.executable_asset_keys)
    )


def _version_tags(context: dg.AssetExecutionContext, batch: str, done: BatchOutcome) -> dict[str, str]:
    """Tags that Dagster compares to detect a stale batch: the versions of the batch, its code and its inputs."""
    definition = context.assets_def
    tags = {
        CODE_VERSION_TAG: definition.code_versions_by_key[context.asset_key] or context.run.run_id,
        DATA_VERSION_TAG: str(done.version),
        DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
    }
    for key in definition.asset_deps[context.asset_key]:
        version = DEFAULT_DATA_VERSION.value if key not in done.inputs else str(done.inputs[key])
        tags[get_input_data_version_tag(key)] = version
        tags[get_input_event_pointer_tag(key)] = _event_pointer(context.instance, key, batch, version)
    return tags


def latest_data_version(instance: dg.DagsterInstance, key: dg.AssetKey, batch: str | None) -> str | None:
    """The data version of the last materialization of an asset, or of one of its batches; None if there is none."""
    only = dg.AssetRecordsFilter(asset_key=key, asset_partitions=None if batch is None else [batch])
    for record in instance.fetch_materializations(only, limit=1).records:
        event = record.asset_materialization
        return None if event is None else (event.tags or {}).get(DATA_VERSION_TAG)
    return None


def _event_pointer(instance: dg.DagsterInstance, key: dg.AssetKey, batch: str, version: str) -> str:
    """Storage id of the newest materialization of a batch that has the given data version."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[batch]), limit=_MAX_RECORDS
    ).records
    for record in records:
        event = record.asset_materialization
        if event is not None and (event.tags or {}).get(DATA_VERSION_TAG) == version:
            return str(record.storage_id)
    return str(records[0].storage_id) if records else NULL_EVENT_POINTER
