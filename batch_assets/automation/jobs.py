"""Jobs that people and sensors launch."""

import dagster as dg

from batch_assets.automation.partitions import BATCHES
from batch_assets.lake.lake import Lake
from batch_assets.settings import Settings

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


class LargeFiles(dg.Config):
    """Complete files of the landing folder that make one batch."""

    batch: str
    files: list[str]


@dg.op(description="Take files out of the landing folder that are too large for a tick of its sensor.")
def take(context: dg.OpExecutionContext, config: LargeFiles, settings: dg.ResourceParam[Settings]) -> None:
    """Take one group of files."""
    from batch_assets.sources.configured import landing_folder
    from batch_assets.sources.landing_folder import Group

    is_news = landing_folder(settings).take(Group(config.batch, tuple(config.files), 0))
    context.log.info(f"batch {config.batch}: {'taken' if is_news else 'as it was taken before'}")


@dg.job(executor_def=dg.in_process_executor, description="Takes large files out of the landing folder.")
def take_files() -> None:
    """Take large files."""
    take()


@dg.op(description="Put small files together, write checkpoints, remove data files that nothing needs any more.")
def keep_tables_up(
    context: dg.OpExecutionContext, settings: dg.ResourceParam[Settings], lake: dg.ResourceParam[Lake]
) -> None:
    """Upkeep of all tables."""
    from batch_assets.inference.completions import sweep
    from batch_assets.lake.tables import TABLES
    from batch_assets.lake.upkeep import keep_up

    for table in TABLES:
        if lake.exists(table):
            keep_up(lake.open(table).delta, settings.vacuum_hours, context.log.info)
    context.log.info(f"{sweep(lake, settings.vacuum_hours)} files of abandoned completions removed")


@dg.job(executor_def=dg.in_process_executor, description="Upkeep of all tables.")
def upkeep() -> None:
    """Upkeep of all tables."""
    keep_tables_up()


JOBS = (materialize_all, land_batches, take_files, score_batches, upkeep)
