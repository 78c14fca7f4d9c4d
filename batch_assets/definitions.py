"""The Dagster code location. It loads in about a second, because it does not import torch, pyspark or mlflow."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from batch_assets.automation.jobs import JOBS
from batch_assets.automation.schedules import schedules
from batch_assets.automation.sensors import sensors
from batch_assets.graph.ai_query_inference import ai_query_inference
from batch_assets.graph.batch_inference import batch_inference
from batch_assets.graph.champion_model import champion_model
from batch_assets.graph.external_assets import external_assets
from batch_assets.graph.logged_model import logged_model
from batch_assets.graph.model_checks import MODEL_CHECKS
from batch_assets.graph.model_evaluation import model_evaluation
from batch_assets.graph.prod_data import prod_data
from batch_assets.graph.quality_checks import quality_checks
from batch_assets.graph.quality_report import quality_report
from batch_assets.graph.summary_quality import summary_quality
from batch_assets.graph.table_checks import TABLE_CHECKS
from batch_assets.lake.lake import Lake
from batch_assets.models.hub_access import go_offline
from batch_assets.operations.promotion import PROMOTION_JOBS
from batch_assets.resources.endpoints import EndpointsResource
from batch_assets.resources.registry import ModelRegistry
from batch_assets.resources.spark import SparkResource
from batch_assets.resources.terminal import terminal_logger
from batch_assets.settings import Settings, load_settings

_PARTITIONED = (prod_data, batch_inference, ai_query_inference, summary_quality)
_UNPARTITIONED = (logged_model, model_evaluation, champion_model, quality_report)


def build_defs(
    *, settings: Settings | None = None, resource_overrides: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """Build the definitions.

    Args:
        settings: by default, loaded from the environment.
        resource_overrides: resources to use instead of the configured ones, by key.

    Raises:
        BatchAssetsError: a setting is invalid.
    """
    settings = settings or load_settings()
    go_offline(settings)
    policy = dg.BackfillPolicy.multi_run(max_partitions_per_run=settings.batches_per_run)
    resources: dict[str, Any] = {
        "settings": settings,
        "lake": Lake.of(settings),
        "registry": ModelRegistry(settings),
        "spark": SparkResource.of(settings),
        "endpoints": EndpointsResource(file=str(settings.endpoints) if settings.endpoints else None),
        **(resource_overrides or {}),
    }
    assets: list[Any] = [
        *external_assets(settings),
        *(asset.with_attributes(backfill_policy=policy) for asset in _PARTITIONED),
        *_UNPARTITIONED,
    ]
    owners = [owner.strip() for owner in settings.owners.split(",")]
    return dg.Definitions(
        assets=dg.map_asset_specs(lambda spec: spec.replace_attributes(owners=owners), assets),
        asset_checks=[*TABLE_CHECKS, *quality_checks(settings), *MODEL_CHECKS],
        jobs=[*JOBS, *PROMOTION_JOBS],
        sensors=sensors(settings),
        schedules=schedules(settings),
        resources=resources,
        executor=dg.in_process_executor,
        loggers={"console": terminal_logger},
    )


defs = build_defs()
