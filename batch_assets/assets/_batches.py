"""Work batch by batch: each is recorded by itself, and one that fails stops no other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    DEFAULT_DATA_VERSION,
    NULL_EVENT_POINTER,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from batch_assets.errors import reason

# Of a batch that has been materialized more often since its version was pinned, the newest record is taken.
_RECORDS_LOOKED_AT = 10
# Metadata of the observation that is the record of a failed batch.
_FAILED = "failed"
# A retry from the step that failed would do the last asset only, and the batches failed in another.
_RETRY_WHOLE = {"dagster/retry_strategy": "ALL_STEPS"}


@dataclass(frozen=True)
class DoneBatch:
    """A batch as it is now.

    ``version`` is the version of the table that last changed it, ``inputs`` the data version of each asset that it was
    made from.
    """

    version: int
    metadata: Mapping[str, Any]
    inputs: Mapping[dg.AssetKey, int] = field(default_factory=dict)


def each_batch(context: dg.AssetExecutionContext, work: Callable[[str], DoneBatch]) -> dg.MaterializeResult[None]:
    """Do the work for every batch of the run; a batch that fails stops no other, in this asset or in those after it.

    Each batch is recorded as materialized when it is done, whatever becomes of the run. Dagster starts nothing after a
    step that failed, so an asset with others after it leaves a record of the batches that failed, the others leave
    those out, and the last one fails the run.

    Args:
        context: of the asset.
        work: takes the key of a batch and commits it.

    Raises:
        dagster.Failure: batches failed, and no asset of the run goes on with the others.
    """
    before = _failed_before(context)
    failed: dict[str, str] = {}
    for batch in context.partition_keys:
        if batch in before:
            context.log.warning(f"batch {batch} is left out: it failed in {before[batch]}")
            failed[batch] = before[batch]
            continue
        try:
            done = work(batch)
        except Exception as error:  # named in the Failure below, or in that of the run's last asset
            failed[batch] = reason(error)
            context.log.error(f"batch {batch} failed: {failed[batch]}", exc_info=True)
            context.log_event(
                dg.AssetObservation(context.asset_key, partition=batch, metadata={_FAILED: failed[batch]})
            )
            continue
        tags = _version_tags(context, batch, done)
        context.log_event(
            dg.AssetMaterialization(context.asset_key, partition=batch, metadata=done.metadata, tags=tags)
        )
    if failed and (len(failed) == len(context.partition_keys) or not _goes_on(context)):
        reasons = "; ".join(f"{batch}: {reason}" for batch, reason in failed.items())
        raise dg.Failure(
            f"{len(failed)} of {len(context.partition_keys)} batches failed ({reasons})", allow_retries=True
        )
    if failed:
        context.instance.add_run_tags(context.run_id, _RETRY_WHOLE)
    # Dagster would record all batches of a run once more, with one data version for all of them. This is its own way
    # around that, see _log_materialization_or_observation_events_for_asset in its execute_step.py.
    return dg.MaterializeResult(metadata={SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True})


def _failed_before(context: dg.AssetExecutionContext) -> dict[str, str]:
    """Batches that failed in this run in an asset that this one is made from: which, and why."""
    graph = context.job_def.asset_layer.asset_graph
    ancestors = graph.get_ancestor_asset_keys(context.asset_key)
    failed: dict[str, str] = {}
    for entry in context.instance.all_logs(context.run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION):
        event = entry.dagster_event
        observed = event.asset_observation_data.asset_observation if event else None
        if observed is None or observed.asset_key not in ancestors or _FAILED not in observed.metadata:
            continue
        failed.setdefault(
            str(observed.partition), f"{observed.asset_key.to_user_string()}: {observed.metadata[_FAILED].value}"
        )
    return failed


def _goes_on(context: dg.AssetExecutionContext) -> bool:
    """Whether an asset that comes after this one, batch by batch, is part of this run."""
    graph = context.job_def.asset_layer.asset_graph
    steps = context.run.step_keys_to_execute
    return any(
        graph.get(key).partitions_def is not None and (steps is None or key.to_python_identifier() in steps)
        for key in graph.get(context.asset_key).child_keys & set(graph.executable_asset_keys)
    )


def _version_tags(context: dg.AssetExecutionContext, batch: str, done: DoneBatch) -> dict[str, str]:
    """What Dagster compares to see that a batch is stale: the versions of the batch, its code and its inputs."""
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


def _event_pointer(instance: dg.DagsterInstance, key: dg.AssetKey, batch: str, version: str) -> str:
    """The newest record of a batch's materialization at a data version: later ones with another make it stale."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[batch]), limit=_RECORDS_LOOKED_AT
    ).records
    for record in records:
        event = record.asset_materialization
        if event is not None and (event.tags or {}).get(DATA_VERSION_TAG) == version:
            return str(record.storage_id)
    return str(records[0].storage_id) if records else NULL_EVENT_POINTER
