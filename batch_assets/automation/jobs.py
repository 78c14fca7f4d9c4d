"""Jobs that people launch."""

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
