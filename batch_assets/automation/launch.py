"""Run the graph in this process, recorded in the same Dagster storage that the UI shows."""

import os
import socket

import dagster as dg
from dagster._core.storage.runs import InMemoryRunStorage, SqliteRunStorage

from batch_assets.automation.jobs import materialize_all
from batch_assets.automation.runs import known_batches, range_tags, ranges

_LAUNCHED_TAG = "batch_assets/launched_by"
_COMMAND = "command line"
# Storage can be shared, and the number of a process says nothing on another machine, nor the lock of another home.
_MACHINE_TAG, _HOME_TAG = "batch_assets/machine", "batch_assets/home"


def close_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs of 'batch-assets run' whose process was killed as failed, and free the pools that they held.

    Only to be called by the holder of the home's lock: while it is held, no such run of this home is alive. Those of
    other commands may be; where they are not, they are orphaned.

    Returns:
        Ids of the runs.
    """
    alive = [
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
    tags = launched_here(instance)
    dead = instance.get_runs(dg.RunsFilter(job_name=materialize_all.name, tags=tags, statuses=alive))
    for run in dead:
        instance.report_run_failed(run, "The process of this run ended without a word.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in dead]


def close_orphaned_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs of this machine whose process is gone as failed, so that they are retried and hold nothing.

    Dagster's code server sees that a run has died, but not where it was killed together with it.

    Returns:
        Ids of the runs.
    """
    orphans = orphaned_runs(instance)
    for run in orphans:
        instance.report_run_failed(run, "The process of this run was killed together with the code server.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in orphans]


def orphaned_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Runs of this machine that count as running, and whose process is gone."""
    started = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    runs = [run for run in instance.get_runs(dg.RunsFilter(statuses=started)) if _is_of_this_machine(instance, run)]
    return [run for run in runs if (pid := process_of(instance, run.run_id)) is not None and not _is_alive(pid)]


def _is_of_this_machine(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run's process, if it lives, is one of this machine; no where nobody can tell.

    What Dagster's code server starts has no note of its machine. In storage under the home folder, everything is of
    this one.
    """
    if _MACHINE_TAG in run.tags:
        return run.tags[_MACHINE_TAG] == socket.gethostname()
    return isinstance(instance.run_storage, SqliteRunStorage | InMemoryRunStorage)


def launched_here(instance: dg.DagsterInstance) -> dict[str, str]:
    """Tags of the runs that commands start in this home."""
    return {_LAUNCHED_TAG: _COMMAND, _MACHINE_TAG: socket.gethostname(), _HOME_TAG: instance.root_directory}


def process_of(instance: dg.DagsterInstance, run_id: str) -> int | None:
    """Process that executes a run, as its engine noted it when it began."""
    for entry in reversed(instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)):
        metadata = entry.dagster_event.engine_event_data.metadata if entry.dagster_event else {}
        if "pid" in metadata:
            return int(str(metadata["pid"].value))
    return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def held_pools(instance: dg.DagsterInstance) -> list[tuple[str, str]]:
    """Pools that a run holds, with the run's id; pools held by runs that are over are freed."""
    held = []
    for pool, run_id, is_over in claimed_pools(instance):
        if is_over:
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
        else:
            held.append((pool, run_id))
    return held


def claimed_pools(instance: dg.DagsterInstance) -> list[tuple[str, str, bool]]:
    """Pools that a run has claimed, with the run's id, and whether that run is over."""
    claimed = []
    for pool in sorted(instance.event_log_storage.get_concurrency_keys()):
        for slot in instance.event_log_storage.get_concurrency_info(pool).claimed_slots:
            run = instance.get_run_by_id(slot.run_id)
            claimed.append((pool, slot.run_id, run is None or run.is_finished))
    return claimed


def materialize(
    definitions: dg.Definitions, instance: dg.DagsterInstance, job_name: str, batches: list[str]
) -> list[str]:
    """Run a job for batches that are registered, once for each unbroken range of them.

    Returns:
        What failed, one entry for each run; nothing where all went well.
    """
    job = definitions.resolve_job_def(job_name)
    failures = []
    for range_ in ranges(known_batches(instance), batches, len(batches) or 1):
        result = job.execute_in_process(
            instance=instance,
            raise_on_error=False,
            # Without it, Dagster logs to the terminal with a logger of its own.
            run_config={"loggers": {"console": {}}},
            tags={
                **range_tags(range_),
                **launched_here(instance),
            },
        )
        steps = [str(event.step_key) for event in result.all_events if event.is_step_failure]
        if not result.success:
            failures.append(f"{', '.join(steps) or 'the start'} of run {result.run_id}")
    return failures
