"""Jobs that users, sensors and schedules launch."""

import dagster as dg

from batch_assets.graph.partitions import BATCHES
from batch_assets.lake.lake import Lake
from batch_assets.settings import Settings

# One process, so that all assets of a run share one Spark session and one embedded endpoint.
materialize_all = dg.define_asset_job(
    "materialize_all",
    selection=dg.AssetSelection.all(),
    partitions_def=BATCHES,
    executor_def=dg.in_process_executor,
    description="Materialize all assets, from the source data set to the quality report, for the selected batches.",
)

land_batches = dg.define_asset_job(
    "land_batches",
    selection=dg.AssetSelection.assets("prod_data"),
    partitions_def=BATCHES,
    executor_def=dg.in_process_executor,
    description="Land the selected batches in m4_1_prod_data.",
)

score_batches = dg.define_asset_job(
    "score_batches",
    selection=dg.AssetSelection.assets("batch_inference", "ai_query_inference", "summary_quality", "quality_report"),
    partitions_def=BATCHES,
    executor_def=dg.in_process_executor,
    description="Summarize the selected batches with the current champion and ai_query, and measure the quality.",
)


class LargeFiles(dg.Config):
    """Complete files of the landing folder that form one batch."""

    batch: str
    files: list[str]


@dg.op(description="Take files from the landing folder that are too large for a sensor tick.")
def take(context: dg.OpExecutionContext, config: LargeFiles, settings: dg.ResourceParam[Settings]) -> None:
    """Take the files of one batch."""
    from batch_assets.sources.configured import landing_folder
    from batch_assets.sources.landing_folder import Group

    is_new = landing_folder(settings).take(Group(config.batch, tuple(config.files), 0))
    context.log.info(f"batch {config.batch}: {'files taken' if is_new else 'files were already taken'}")


@dg.job(executor_def=dg.in_process_executor, description="Take large files from the landing folder.")
def take_files() -> None:
    """Take large files from the landing folder."""
    take()


@dg.op(description="Compact small files, write checkpoints, and remove unused files.")
def keep_tables_up(
    context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings], lake: dg.ResourceParam[Lake]
) -> None:
    """Maintain all tables and remove abandoned completions."""
    from batch_assets.lake.contracts import TABLES
    from batch_assets.lake.upkeep import maintain
    from batch_assets.scoring.completions import remove_abandoned

    for table in TABLES:
        if lake.exists(table):
            maintain(lake.open(table).delta, settings.vacuum_hours, context.log.info)
    context.log.info(f"{remove_abandoned(lake, settings.vacuum_hours)} files of abandoned completions removed")


@dg.job(executor_def=dg.in_process_executor, description="Compact all tables and remove unused files.")
def upkeep() -> None:
    """Maintain all tables."""
    keep_tables_up()


JOBS = (materialize_all, land_batches, take_files, score_batches, upkeep)
