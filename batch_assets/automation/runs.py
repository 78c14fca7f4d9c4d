"""Runs over batches: which batches have one, and how one is asked for."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import groupby

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)
from sqlalchemy.exc import IntegrityError

from batch_assets.automation.partitions import BATCHES

ALIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def known_batches(instance: dg.DagsterInstance) -> list[str]:
    """Batches that are registered as partitions, in their order."""
    return list(instance.get_dynamic_partitions(str(BATCHES.name)))


def register_batches(instance: dg.DagsterInstance, batches: Sequence[str]) -> None:
    """Make batches known as partitions."""
    while new := _unknown(instance, batches):
        try:
            instance.add_dynamic_partitions(str(BATCHES.name), new)
        except IntegrityError:
            # Another process may register one of them between Dagster's look and its insertion, which then adds none.
            if _unknown(instance, batches) == new:
                raise


def _unknown(instance: dg.DagsterInstance, batches: Sequence[str]) -> list[str]:
    known = set(known_batches(instance))
    return [batch for batch in dict.fromkeys(batches) if batch not in known]


def busy_batches(instance: dg.DagsterInstance, statuses: Sequence[dg.DagsterRunStatus] = ALIVE) -> set[str]:
    """Batches that a run is queued or running for, or that a run with one of some statuses is over."""
    known = known_batches(instance)
    runs = instance.get_runs(dg.RunsFilter(statuses=list(statuses)))
    return {batch for run in runs for batch in batches_of(run, known)}


def batches_of(run: dg.DagsterRun, known: Sequence[str]) -> list[str]:
    """Batches that a run is over, of those that are known in this order."""
    if PARTITION_NAME_TAG in run.tags:
        return [run.tags[PARTITION_NAME_TAG]]
    first, last = (run.tags.get(tag) for tag in (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG))
    if first not in known or last not in known:
        return []
    return list(known[known.index(first) : known.index(last) + 1])


def ranges(known: Sequence[str], wanted: Sequence[str], longest: int) -> list[list[str]]:
    """Unbroken ranges of wanted batches, in the order in which they are known, none longer than ``longest``."""
    wanted_set = set(wanted)
    found = []
    for is_wanted, group in groupby(known, key=wanted_set.__contains__):
        keys = list(group)
        if is_wanted:
            found += [keys[start : start + longest] for start in range(0, len(keys), longest)]
    return found


def range_tags(batches: Sequence[str]) -> dict[str, str]:
    """Tags of a run over an unbroken range of batches."""
    return {ASSET_PARTITION_RANGE_START_TAG: batches[0], ASSET_PARTITION_RANGE_END_TAG: batches[-1]}


def run_requests(
    instance: dg.DagsterInstance, job: str, reasons: Mapping[str, object], longest: int
) -> list[dg.RunRequest]:
    """Requests for runs over batches.

    A request for the same batches for the same reasons is made once: what failed for good stays so until somebody acts,
    or something changes.

    Args:
        instance: knows the batches.
        job: name of the job.
        reasons: for each batch, what makes it stale.
        longest: batches that a run covers at most.
    """
    requests = []
    for batches in ranges(known_batches(instance), list(reasons), longest):
        parts = json.dumps([job, [[batch, reasons[batch]] for batch in batches]], sort_keys=True, default=str)
        key = hashlib.sha256(parts.encode()).hexdigest()[:32]
        requests.append(dg.RunRequest(run_key=key, job_name=job, tags=range_tags(batches)))
    return requests
