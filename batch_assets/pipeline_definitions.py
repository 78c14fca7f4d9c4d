"""Dagster definitions of pipelines, for this deployment or for a project that has other assets too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import dagster as dg

from batch_assets.automation.jobs import ExecutableJob, pipeline_jobs
from batch_assets.automation.schedules import pipeline_schedules
from batch_assets.automation.sensors import pipeline_sensors
from batch_assets.errors import BatchAssetsError, reason
from batch_assets.graph.pipeline_assets import PipelineAssets, pipeline_assets
from batch_assets.lake.lake import Lake
from batch_assets.operations.promotion import promotion_jobs
from batch_assets.pipelines.deployment import settings_together
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
    """Build the definitions of several pipelines, which share their resources; one may use the model of another.

    Raises:
        BatchAssetsError: a field, or a setting of the deployment, is not valid, or two pipelines collide.
    """
    deployment = load_settings()
    settings = settings_together([pipeline.attributes for pipeline in pipelines], deployment)
    resources = {**shared_resources(deployment), **(resource_overrides or {})}
    parts = [PipelineParts.of(one) for one in settings]
    return dg.Definitions.merge(combined(parts), dg.Definitions(resources=resources))


@cache
def shared_resources(deployment: Settings) -> dict[str, Any]:
    """The resources of all pipelines of a deployment, the same objects for each, so that definitions can be merged."""
    return {
        "lake": Lake.of(deployment),
        "registry": ModelRegistry(deployment),
        "spark": SparkResource.of(deployment),
        "endpoints": EndpointsResource(file=str(deployment.endpoints) if deployment.endpoints else None),
    }


@dataclass(frozen=True)
class PipelineParts:
    """Everything that a pipeline adds to a code location, apart from resources."""

    assets: PipelineAssets
    jobs: Sequence[ExecutableJob]
    sensors: Sequence[dg.SensorDefinition]
    schedules: Sequence[dg.ScheduleDefinition]

    @classmethod
    def of(cls, settings: Settings) -> "PipelineParts":
        """Build the parts of a pipeline.

        Raises:
            BatchAssetsError: its task or its tables are not valid, or Dagster refuses something in its file.
        """
        jobs = {job.name: job for job in pipeline_jobs(settings)}
        try:
            return cls(
                pipeline_assets(settings),
                [*jobs.values(), *promotion_jobs(settings)],
                pipeline_sensors(settings, jobs),
                pipeline_schedules(settings, jobs),
            )
        except dg.DagsterError as error:
            raise BatchAssetsError(f"Dagster refuses the pipeline {settings.pipeline}: {reason(error)}") from error


def combined(parts: Sequence[PipelineParts]) -> dg.Definitions:
    """The definitions of pipelines, without resources."""
    # Pipelines that call the same endpoint share its asset. Dagster would put all specs into one definition, and every
    # job would then contain the external assets of all pipelines.
    external = {spec.key: dg.AssetsDefinition(specs=[spec]) for part in parts for spec in part.assets.external}
    return dg.Definitions(
        assets=[*external.values(), *(asset for part in parts for asset in part.assets.assets)],
        asset_checks=[check for part in parts for check in part.assets.checks],
        jobs=[job for part in parts for job in part.jobs],
        sensors=[sensor for part in parts for sensor in part.sensors],
        schedules=[schedule for part in parts for schedule in part.schedules],
    )
