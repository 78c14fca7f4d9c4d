"""Dagster definitions of pipelines, for this deployment or for a project that has other assets too."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import dagster as dg

from batch_assets.automation.jobs import pipeline_jobs
from batch_assets.automation.schedules import pipeline_schedules
from batch_assets.automation.sensors import pipeline_sensors
from batch_assets.graph.pipeline_assets import pipeline_assets
from batch_assets.lake.lake import Lake
from batch_assets.models.hub_access import go_offline
from batch_assets.operations.promotion import promotion_jobs
from batch_assets.pipelines.deployment import refuse_collisions
from batch_assets.pipelines.pipeline import Pipeline
from batch_assets.resources.endpoints import EndpointsResource
from batch_assets.resources.registry import ModelRegistry
from batch_assets.resources.spark import SparkResource
from batch_assets.settings import Settings, load_settings


def build_pipeline(pipeline: Pipeline, *, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Build the assets, checks, jobs, sensors, schedules and resources of one pipeline.

    Merge them with those of another project, ``Definitions.merge(mine, build_pipeline(...))``. Projects with several
    pipelines need the resources once: ``build_pipelines``.

    Args:
        pipeline: the fields of its file.
        resource_overrides: resources to use instead of the configured ones, by key: lake, registry, spark, endpoints.

    Raises:
        BatchAssetsError: a field, or a setting of the deployment, is not valid.
    """
    return build_pipelines([pipeline], resource_overrides=resource_overrides)


def build_pipelines(
    pipelines: Sequence[Pipeline], *, resource_overrides: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """Build the definitions of several pipelines, which share their resources.

    Raises:
        BatchAssetsError: a field, or a setting of the deployment, is not valid, or two pipelines collide.
    """
    deployment = load_settings()
    settings = [pipeline.settings(deployment) for pipeline in pipelines]
    refuse_collisions(settings)
    resources = {**shared_resources(deployment), **(resource_overrides or {})}
    return dg.Definitions.merge(pipeline_definitions(settings), dg.Definitions(resources=resources))


@cache
def shared_resources(deployment: Settings) -> dict[str, Any]:
    """The resources of all pipelines of a deployment, the same objects for each, so that definitions can be merged."""
    return {
        "lake": Lake.of(deployment),
        "registry": ModelRegistry(deployment),
        "spark": SparkResource.of(deployment),
        "endpoints": EndpointsResource(file=str(deployment.endpoints) if deployment.endpoints else None),
    }


def pipeline_definitions(pipelines: Sequence[Settings]) -> dg.Definitions:
    """The definitions of pipelines, without resources.

    Raises:
        BatchAssetsError: the task or the tables of a pipeline are not valid.
    """
    found = [pipeline_assets(settings) for settings in pipelines]
    # Pipelines that call the same endpoint share its asset.
    external = {spec.key: spec for one in found for spec in one.external}
    jobs, sensors, schedules = [], [], []
    go_offline(pipelines)
    for settings in pipelines:
        of_pipeline = {job.name: job for job in pipeline_jobs(settings)}
        jobs += [*of_pipeline.values(), *promotion_jobs(settings)]
        sensors += pipeline_sensors(settings, of_pipeline)
        schedules += pipeline_schedules(settings, of_pipeline)
    return dg.Definitions(
        assets=[*external.values(), *(asset for one in found for asset in one.assets)],
        asset_checks=[check for one in found for check in one.checks],
        jobs=jobs,
        sensors=sensors,
        schedules=schedules,
    )
