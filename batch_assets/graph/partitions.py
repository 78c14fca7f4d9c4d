"""Batches as Dagster partitions: the registered batches, and the batches of runs."""

from collections.abc import Sequence
from functools import cache
from itertools import groupby

import dagster as dg
from sqlalchemy.exc import IntegrityError

from batch_assets.graph.pipeline_names import JOBS, AssetKeys, prefixed
from batch_assets.resources.dagster_internals import PARTITION_NAME_TAG, RANGE_END_TAG, RANGE_START_TAG
from batch_assets.settings import DEFAULT_PIPELINE


@cache
def batch_partitions(pipeline: str) -> dg.DynamicPartitionsDefinition:
    """The partitions of a pipeline: its batches."""
    name = "batch" if pipeline == DEFAULT_PIPELINE else pipeline
    return dg.DynamicPartitionsDefinition(name=f"batch_assets/{name}")


ACTIVE_STATUSES = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def known_batches(instance: dg.DagsterInstance, pipeline: str) -> list[str]:
    """Batches of a pipeline that are registered as partitions, in registration order."""
    return list(instance.get_dynamic_partitions(str(batch_partitions(pipeline).name)))


def register_batches(instance: dg.DagsterInstance, pipeline: str, batches: Sequence[str]) -> None:
    """Register batches of a pipeline as partitions; batches that are already registered are ignored."""
    while new := _unknown(instance, pipeline, batches):
        try:
            instance.add_dynamic_partitions(str(batch_partitions(pipeline).name), new)
        except IntegrityError:
            # If another process registers one of the batches between Dagster's check and insert, none is inserted.
            if _unknown(instance, pipeline, batches) == new:
                raise


def active_runs(instance: dg.DagsterInstance, pipeline: str) -> list[dg.DagsterRun]:
    """The runs of a pipeline that are queued or running."""
    return [run for run in instance.get_runs(dg.RunsFilter(statuses=ACTIVE_STATUSES)) if _is_run_of(run, pipeline)]


def forget_batches(instance: dg.DagsterInstance, pipeline: str) -> None:
    """Remove the batches of a pipeline from its partitions."""
    for batch in known_batches(instance, pipeline):
        instance.delete_dynamic_partition(str(batch_partitions(pipeline).name), batch)


def _unknown(instance: dg.DagsterInstance, pipeline: str, batches: Sequence[str]) -> list[str]:
    known = set(known_batches(instance, pipeline))
    return [batch for batch in dict.fromkeys(batches) if batch not in known]


def busy_batches(
    instance: dg.DagsterInstance, pipeline: str, statuses: Sequence[dg.DagsterRunStatus] = ACTIVE_STATUSES
) -> set[str]:
    """Batches of a pipeline's runs with one of the statuses; by default, of runs that are queued or running."""
    known = known_batches(instance, pipeline)
    runs = instance.get_runs(dg.RunsFilter(statuses=list(statuses)))
    return {batch for run in runs for batch in batches_of(run, pipeline, known)}


def batches_of(run: dg.DagsterRun, pipeline: str, known: Sequence[str]) -> list[str]:
    """The batches of a run of a pipeline, none if it is a run of another one; ``known`` has all batches in order."""
    if not _is_run_of(run, pipeline):
        return []
    if PARTITION_NAME_TAG in run.tags:
        return [run.tags[PARTITION_NAME_TAG]]
    first, last = (run.tags.get(tag) for tag in (RANGE_START_TAG, RANGE_END_TAG))
    if first not in known or last not in known:
        return []
    return list(known[known.index(first) : known.index(last) + 1])


def _is_run_of(run: dg.DagsterRun, pipeline: str) -> bool:
    """Whether a run materializes assets of a pipeline: by its job, or by its assets if they were selected by hand."""
    if run.job_name in {prefixed(pipeline, job) for job in JOBS}:
        return True
    return any(AssetKeys(pipeline).is_of_this_pipeline(key) for key in run.asset_selection or ())


def ranges(known: Sequence[str], wanted: Sequence[str], longest: int) -> list[list[str]]:
    """Split the wanted batches into ranges without gaps in ``known``, of at most ``longest`` batches each."""
    wanted_set = set(wanted)
    found = []
    for is_wanted, group in groupby(known, key=wanted_set.__contains__):
        keys = list(group)
        if is_wanted:
            found += [keys[start : start + longest] for start in range(0, len(keys), longest)]
    return found


def range_tags(batches: Sequence[str]) -> dict[str, str]:
    """Run tags for a range of batches without gaps."""
    return {RANGE_START_TAG: batches[0], RANGE_END_TAG: batches[-1]}
