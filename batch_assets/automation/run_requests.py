"""Run requests, one per range of batches that need work."""

import hashlib
import json
from collections.abc import Mapping

import dagster as dg

from batch_assets.graph.partitions import known_batches, range_tags, ranges
from batch_assets.graph.pipeline_names import prefixed
from batch_assets.settings import Settings


def run_requests(
    instance: dg.DagsterInstance, settings: Settings, job: str, reasons: Mapping[str, object]
) -> list[dg.RunRequest]:
    """Create run requests for stale batches.

    The run key depends on the batches and reasons, so Dagster launches a request once. A failed run is not repeated
    until a reason changes or a user launches it again.

    Args:
        instance: Dagster instance with the registered batches.
        settings: the pipeline, and the maximum number of batches per run.
        job: name of the job of any pipeline.
        reasons: what makes each batch stale.
    """
    requests = []
    name = prefixed(settings.pipeline, job)
    for batches in ranges(known_batches(instance, settings.pipeline), list(reasons), settings.batches_per_run):
        parts = json.dumps([name, [[batch, reasons[batch]] for batch in batches]], sort_keys=True, default=str)
        key = hashlib.sha256(parts.encode()).hexdigest()[:32]
        requests.append(dg.RunRequest(run_key=key, job_name=name, tags=range_tags(batches)))
    return requests
