"""Jobs that people and sensors launch."""

import dagster as dg

from batch_assets.automation.partitions import BATCHES

# One process, so that all assets of a run share one Spark session and one embedded endpoint.
materialize_all = dg.define_asset_job(
    "materialize_all",
    selection=dg.AssetSelection.all(),
    partitions_def=BATCHES,
    executor_def=dg.in_process_executor,
    description="Everything, from the source data set to the quality report, for the chosen batches.",
)

land_batches = dg.define_asset_job(
    "land_batches",
    selection=dg.AssetSelection.assets("prod_data"),
    partitions_def=BATCHES,
    executor_def=dg.in_process_executor,
    description="Bring the chosen batches into m4_1_prod_data.",
)

score_batches = dg.define_asset_job(
    "score_batches",
    selection=dg.AssetSelection.assets("batch_inference", "ai_query_inference", "summary_quality", "quality_report"),
    partitions_def=BATCHES,
    executor_def=dg.in_process_executor,
    description="Summaries and their quality for the chosen batches, by the champion that there is.",
)
