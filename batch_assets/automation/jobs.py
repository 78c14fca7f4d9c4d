"""Jobs that users, sensors and schedules launch."""

from collections.abc import Sequence
from typing import TypeAlias

import dagster as dg

from batch_assets.errors import BatchAssetsError
from batch_assets.graph.pipeline_names import (
    LAND_BATCHES,
    MATERIALIZE_ALL,
    SCORE_BATCHES,
    TAKE_FILES,
    TAKE_OP,
    AssetKeys,
    prefixed,
)
from batch_assets.graph.signatures import with_known_signature
from batch_assets.lake.lake import Lake
from batch_assets.resources.dagster_internals import UnresolvedAssetJobDefinition, asset_job
from batch_assets.settings import Settings
from batch_assets.tasks.output_tables import tables_of

ExecutableJob: TypeAlias = dg.JobDefinition | UnresolvedAssetJobDefinition


def pipeline_jobs(settings: Settings) -> list[ExecutableJob]:
    """The jobs of a pipeline."""
    keys, documents = AssetKeys(settings.pipeline), tables_of(settings).documents
    model = [keys.logged_model, keys.evaluation, keys.champion] if settings.shared_model is None else []
    answers = [keys.scored, *([] if settings.endpoint is None else [keys.answered]), keys.quality, keys.report]

    def job(name: str, selected: list[dg.AssetKey], description: str) -> ExecutableJob:
        # One process, so that all assets of a run share one Spark session and one embedded endpoint.
        return asset_job(
            prefixed(settings.pipeline, name), selected, executor=dg.in_process_executor, description=description
        )

    jobs: list[ExecutableJob] = [
        job(
            MATERIALIZE_ALL,
            [keys.documents, *model, *answers],
            "Materialize all assets of the pipeline, from the source to the quality report, for the selected batches.",
        ),
        job(LAND_BATCHES, [keys.documents], f"Land the selected batches in {documents.name}."),
        job(
            SCORE_BATCHES,
            answers,
            "Score the selected batches with the current champion and ai_query, and measure the quality.",
        ),
    ]
    return [*jobs, _take_files(settings)] if settings.is_landing else jobs


class LargeFiles(dg.Config):
    """Complete files of the landing folder that form one batch."""

    batch: str
    files: list[str]


def _take_files(settings: Settings) -> dg.JobDefinition:
    @dg.op(
        name=prefixed(settings.pipeline, TAKE_OP),
        description="Take files from the landing folder that are too large for a sensor tick.",
    )
    @with_known_signature
    def take(context: dg.OpExecutionContext, config: LargeFiles) -> None:
        """Take the files of one batch."""
        from batch_assets.sources.configured import landing_folder
        from batch_assets.sources.landing_folder import Group

        is_new = landing_folder(settings).take(Group(config.batch, tuple(config.files), 0))
        context.log.info(f"batch {config.batch}: {'files taken' if is_new else 'files were already taken'}")

    @dg.job(
        name=prefixed(settings.pipeline, TAKE_FILES),
        executor_def=dg.in_process_executor,
        description="Take large files from the landing folder.",
    )
    def take_files() -> None:
        """Take large files from the landing folder."""
        take()

    return take_files


def upkeep_job(pipelines: Sequence[Settings]) -> dg.JobDefinition:
    """The job that maintains the tables of all pipelines."""

    @dg.op(description="Compact small files, write checkpoints, and remove unused files.")
    def keep_tables_up(context: dg.OpExecutionContext, lake: dg.ResourceParam[Lake]) -> None:
        """Maintain all tables and remove abandoned completions."""
        from batch_assets.lake.upkeep import maintain
        from batch_assets.scoring.completions import remove_abandoned

        vacuum_hours = pipelines[0].vacuum_hours
        problems = []
        for table in (table for settings in pipelines for table in tables_of(settings).all):
            try:
                if lake.exists(table):
                    maintain(lake.find(table).delta, vacuum_hours, context.log.info)
            except BatchAssetsError as error:
                problems.append(str(error))
        context.log.info(f"{remove_abandoned(lake, vacuum_hours)} files of abandoned completions removed")
        if problems:
            raise BatchAssetsError("; ".join(problems))

    @dg.job(executor_def=dg.in_process_executor, description="Compact all tables and remove unused files.")
    def upkeep() -> None:
        """Maintain all tables."""
        keep_tables_up()

    return upkeep
