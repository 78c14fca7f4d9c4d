"""Run jobs in this process, recorded in the Dagster storage that the UI shows."""

import socket

import dagster as dg

from batch_assets.graph.partitions import known_batches, range_tags, ranges
from batch_assets.graph.pipeline_names import MATERIALIZE_ALL, prefixed
from batch_assets.machine import is_alive
from batch_assets.resources.dagster_internals import InMemoryRunStorage, SqliteRunStorage

_LAUNCHED_TAG = "batch_assets/launched_by"
_COMMAND = "command line"
# Storage can be shared: a process id means nothing on another machine, nor a lock in another home.
_MACHINE_TAG, _HOME_TAG = "batch_assets/machine", "batch_assets/home"


def close_dead_runs(instance: dg.DagsterInstance, pipeline: str) -> list[str]:
    """Mark runs of 'batch-assets run' whose process was killed as failed, and free their pools.

    Call this only while holding the pipeline's lock, so that none of these runs is still alive. Runs of other
    commands may be alive; ``close_orphaned_runs`` finds those that are not.

    Returns:
        Ids of the closed runs.
    """
    alive = [
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
    tags = launch_tags(instance)
    dead = instance.get_runs(dg.RunsFilter(job_name=prefixed(pipeline, MATERIALIZE_ALL), tags=tags, statuses=alive))
    for run in dead:
        instance.report_run_failed(run, "The process of this run ended without reporting a result.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in dead]


def close_orphaned_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs on this machine whose process is gone as failed, so that they are retried and free their pools.

    Dagster's code server notices that a run has died, unless it was killed together with the run.

    Returns:
        Ids of the closed runs.
    """
    orphans = orphaned_runs(instance)
    for run in orphans:
        instance.report_run_failed(run, "The process of this run was killed together with the code server.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in orphans]


def orphaned_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Runs on this machine that are recorded as running although their process is gone."""
    started = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    runs = [run for run in instance.get_runs(dg.RunsFilter(statuses=started)) if _is_of_this_machine(instance, run)]
    processes = {run.run_id: process_of(instance, run.run_id) for run in runs}
    return [run for run in runs if (process := processes[run.run_id]) is not None and not is_alive(*process)]


def _is_of_this_machine(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run was started on this machine; False if unknown.

    Dagster's code server does not record the machine of its runs. In storage under the home folder, all runs are of
    this machine.
    """
    if _MACHINE_TAG in run.tags:
        return run.tags[_MACHINE_TAG] == socket.gethostname()
    return isinstance(instance.run_storage, SqliteRunStorage | InMemoryRunStorage)


def launch_tags(instance: dg.DagsterInstance) -> dict[str, str]:
    """Tags of runs that commands start in this home."""
    return {_LAUNCHED_TAG: _COMMAND, _MACHINE_TAG: socket.gethostname(), _HOME_TAG: instance.root_directory}


def process_of(instance: dg.DagsterInstance, run_id: str) -> tuple[int, float] | None:
    """Id of the process that executes a run, and when it was recorded, in seconds since 1970; None if it was not."""
    for entry in reversed(instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)):
        metadata = entry.dagster_event.engine_event_data.metadata if entry.dagster_event else {}
        if "pid" in metadata:
            return int(str(metadata["pid"].value)), entry.timestamp
    return None


def held_pools(instance: dg.DagsterInstance) -> list[tuple[str, str]]:
    """Pools held by a run, with its id; frees pools held by finished runs."""
    held = []
    for pool, run_id, is_over in claimed_pools(instance):
        if is_over:
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
        else:
            held.append((pool, run_id))
    return held


def claimed_pools(instance: dg.DagsterInstance) -> list[tuple[str, str, bool]]:
    """Pools claimed by a run, with its id and whether it has finished."""
    claimed = []
    for pool in sorted(instance.event_log_storage.get_concurrency_keys()):
        for slot in instance.event_log_storage.get_concurrency_info(pool).claimed_slots:
            run = instance.get_run_by_id(slot.run_id)
            claimed.append((pool, slot.run_id, run is None or run.is_finished))
    return claimed


def materialize(
    definitions: dg.Definitions, instance: dg.DagsterInstance, pipeline: str, job: str, batches: list[str]
) -> list[str]:
    """Run a job for registered batches, once for each contiguous range of them.

    Args:
        definitions: the code location.
        instance: Dagster's storage.
        pipeline: name of the pipeline.
        job: the job to run, one of the jobs of any pipeline.
        batches: batches to run it for.

    Returns:
        What failed, one entry per failed run.
    """
    resolved = definitions.resolve_job_def(prefixed(pipeline, job))
    failures = []
    for range_ in ranges(known_batches(instance, pipeline), batches, len(batches) or 1):
        result = resolved.execute_in_process(
            instance=instance,
            raise_on_error=False,
            # Otherwise, Dagster logs to the terminal with its own logger.
            run_config={"loggers": {"console": {}}},
            tags={
                **range_tags(range_),
                **launch_tags(instance),
            },
        )
        steps = [str(event.step_key) for event in result.all_events if event.is_step_failure]
        if not result.success:
            failures.append(f"{', '.join(steps) or 'the start'} of run {result.run_id}")
    return failures
