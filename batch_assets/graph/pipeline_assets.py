"""All assets and checks of a pipeline."""

from dataclasses import dataclass

import dagster as dg

from batch_assets.graph.ai_query_inference import build_ai_query_inference
from batch_assets.graph.batch_checks import check_definitions
from batch_assets.graph.batch_inference import build_batch_inference
from batch_assets.graph.champion_model import build_champion_model
from batch_assets.graph.external_assets import external_assets
from batch_assets.graph.logged_model import build_logged_model
from batch_assets.graph.model_checks import model_checks
from batch_assets.graph.model_evaluation import build_model_evaluation
from batch_assets.graph.prod_data import build_prod_data
from batch_assets.graph.quality_checks import quality_checks
from batch_assets.graph.quality_report import build_quality_report
from batch_assets.graph.summary_quality import build_summary_quality
from batch_assets.graph.table_checks import table_checks
from batch_assets.settings import Settings


@dataclass(frozen=True)
class PipelineAssets:
    """The assets of a pipeline, those outside that it reads, and its checks."""

    assets: list[dg.AssetsDefinition]
    external: list[dg.AssetSpec]
    checks: list[dg.AssetChecksDefinition]


def pipeline_assets(settings: Settings) -> PipelineAssets:
    """Create the assets of a pipeline.

    Raises:
        BatchAssetsError: its task or its tables are not valid.
    """
    # Dagster warns where the decorator gets the policy.
    policy = dg.BackfillPolicy.multi_run(max_partitions_per_run=settings.batches_per_run)
    partitioned = [build_prod_data(settings), build_batch_inference(settings), build_summary_quality(settings)]
    if settings.endpoint is not None:
        partitioned.append(build_ai_query_inference(settings))
    whole = [build_quality_report(settings)]
    if settings.shared_model is None:
        whole += [build_logged_model(settings), build_model_evaluation(settings), build_champion_model(settings)]
    return PipelineAssets(
        [*(asset.with_attributes(backfill_policy=policy) for asset in partitioned), *whole],
        external_assets(settings),
        check_definitions([*table_checks(settings), *quality_checks(settings), *model_checks(settings)]),
    )
