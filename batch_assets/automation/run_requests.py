"""Run requests, one per range of batches that need work."""

import hashlib
import json
from collections.abc import Mapping

import dagster as dg

from batch_assets.graph.partitions import known_batches, range_tags, ranges


def run_requests(
    instance: dg.DagsterInstance, job: str, reasons: Mapping[str, object], longest: int
) -> list[dg.RunRequest]:
    """Create run requests for stale batches.

    The run key depends on the batches and reasons, so Dagster launches a request once. A failed run is not repeated
    until a reason changes or a user launches it again.

    Args:
        instance: Dagster instance with the registered batches.
        job: name of the job.
        reasons: what makes each batch stale.
        longest: maximum number of batches per run.
    """
    requests = []
    for batches in ranges(known_batches(instance), list(reasons), longest):
        parts = json.dumps([job, [[batch, reasons[batch]] for batch in batches]], sort_keys=True, default=str)
        key = hashlib.sha256(parts.encode()).hexdigest()[:32]
        requests.append(dg.RunRequest(run_key=key, job_name=job, tags=range_tags(batches)))
    return requests
