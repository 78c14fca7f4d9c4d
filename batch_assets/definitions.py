"""The Dagster code location: all pipelines. It loads in about a second, without torch, pyspark or mlflow."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from batch_assets.automation.jobs import upkeep_job
from batch_assets.automation.schedules import upkeep_schedule
from batch_assets.automation.sensors import alert_sensor
from batch_assets.errors import BatchAssetsError
from batch_assets.graph.broken_pipelines import broken_pipelines
from batch_assets.models.hub_access import go_offline
from batch_assets.pipeline_definitions import PipelineParts, combined, shared_resources
from batch_assets.pipelines.deployment import BrokenPipeline, Deployment, load_deployment
from batch_assets.resources.terminal import terminal_logger
from batch_assets.settings import Settings


def build_defs(
    *,
    settings: Settings | Sequence[Settings] | None = None,
    resource_overrides: Mapping[str, Any] | None = None,
) -> dg.Definitions:
    """Build the definitions of one or several pipelines, with the jobs and schedules that they share.

    Args:
        settings: of the pipelines; by default, those of the deployment that the environment describes.
        resource_overrides: resources to use instead of the configured ones, by key.

    Raises:
        BatchAssetsError: a setting of the deployment is invalid. An invalid pipeline is left out, with a failing check.
    """
    if settings is None:
        deployment = load_deployment()
    else:
        pipelines = [settings] if isinstance(settings, Settings) else list(settings)
        deployment = Deployment(pipelines[0], pipelines, [])
    first = deployment.default
    go_offline(deployment.pipelines)
    parts, refused = [], []
    for one in deployment.pipelines:
        try:
            parts.append(PipelineParts.of(one))
        except BatchAssetsError as error:
            if one.pipeline not in deployment.files:
                raise
            refused.append(BrokenPipeline(one.pipeline, deployment.files[one.pipeline], str(error)))
    upkeep = upkeep_job(deployment.pipelines)
    shared = dg.Definitions(
        jobs=[upkeep],
        sensors=[alert_sensor(first)],
        schedules=[upkeep_schedule(first, upkeep)],
        resources={**shared_resources(first), **(resource_overrides or {})},
        executor=dg.in_process_executor,
        loggers={"console": terminal_logger},
    )
    return dg.Definitions.merge(shared, combined(parts), broken_pipelines([*deployment.problems, *refused]))


defs = build_defs()
