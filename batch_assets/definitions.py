"""The code location. Loading it imports neither torch nor pyspark nor mlflow, so that it takes a second."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from batch_assets.assets.ai_query_inference import ai_query_inference
from batch_assets.assets.batch_inference import batch_inference
from batch_assets.assets.champion_model import champion_model
from batch_assets.assets.external import external_assets
from batch_assets.assets.logged_model import logged_model
from batch_assets.assets.model_evaluation import model_evaluation
from batch_assets.assets.prod_data import prod_data
from batch_assets.assets.quality_report import quality_report
from batch_assets.assets.summary_quality import summary_quality
from batch_assets.automation.jobs import JOBS
from batch_assets.automation.promotion import PROMOTION_JOBS
from batch_assets.automation.schedules import schedules
from batch_assets.automation.sensors import sensors
from batch_assets.checks.models import beats_lead_baseline, promotion
from batch_assets.checks.quality import quality_checks
from batch_assets.checks.tables import TABLE_CHECKS
from batch_assets.hub import keep_off_the_hub
from batch_assets.lake.configured import configured_lake
from batch_assets.resources.endpoints import EndpointsResource
from batch_assets.resources.registry import ModelRegistry
from batch_assets.resources.spark import SparkResource
from batch_assets.resources.terminal import terminal_logger
from batch_assets.settings import Settings, load_settings

_PARTITIONED = (prod_data, batch_inference, ai_query_inference, summary_quality)
_WHOLE = (logged_model, model_evaluation, champion_model, quality_report)


def build_defs(
    *, settings: Settings | None = None, resource_overrides: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """Build the definitions.

    Args:
        settings: by default those of the environment.
        resource_overrides: resources to use instead of the configured ones, by key.

    Raises:
        BatchAssetsError: a setting can't be used.
    """
    settings = settings or load_settings()
    keep_off_the_hub(settings)
    policy = dg.BackfillPolicy.multi_run(max_partitions_per_run=settings.batches_per_run)
    resources: dict[str, Any] = {
        "settings": settings,
        "lake": configured_lake(settings),
        "registry": ModelRegistry(settings),
        "spark": SparkResource.of(settings),
        "endpoints": EndpointsResource(file=str(settings.endpoints) if settings.endpoints else None),
        **(resource_overrides or {}),
    }
    assets: list[Any] = [
        *external_assets(settings),
        *(asset.with_attributes(backfill_policy=policy) for asset in _PARTITIONED),
        *_WHOLE,
    ]
    owners = [owner.strip() for owner in settings.owners.split(",")]
    return dg.Definitions(
        assets=dg.map_asset_specs(lambda spec: spec.replace_attributes(owners=owners), assets),
        asset_checks=[*TABLE_CHECKS, *quality_checks(settings), beats_lead_baseline, promotion],
        jobs=[*JOBS, *PROMOTION_JOBS],
        sensors=sensors(settings),
        schedules=schedules(settings),
        resources=resources,
        executor=dg.in_process_executor,
        loggers={"console": terminal_logger},
    )


defs = build_defs()
