"""Start a pipeline afresh: remove its tables, unfinished answers and batches. Its models and runs stay."""

from collections.abc import Callable

from batch_assets.errors import BatchAssetsError
from batch_assets.graph.partitions import active_runs, forget_batches
from batch_assets.lake.lake import Lake
from batch_assets.locks import locked
from batch_assets.operations.run import run_lock
from batch_assets.resources.dagster_storage import open_instance
from batch_assets.scoring.completions import CompletionStore
from batch_assets.settings import Settings
from batch_assets.sources.configured import landing_folder


def rows_by_table(settings: Settings) -> dict[str, int]:
    """The tables of a pipeline, also those that its file no longer names, with their numbers of rows.

    Raises:
        BatchAssetsError: it is the default pipeline.
    """
    if settings.is_default:
        raise BatchAssetsError(
            f"the pipeline {settings.pipeline} can't be reset: set BATCH_ASSETS_HOME or BATCH_ASSETS_SCHEMA to another "
            "name"
        )
    return Lake.of(settings).owned_by(settings.pipeline)


def reset(settings: Settings, report: Callable[[str], None]) -> None:
    """Remove the tables of a pipeline, its unfinished answers and its batches in Dagster; land its files again.

    Args:
        settings: the pipeline.
        report: called with each progress message.

    Raises:
        BatchAssetsError: it is the default pipeline, or a run of it is queued or running.
    """
    lake, tables = Lake.of(settings), rows_by_table(settings)
    refusal = f"the pipeline {settings.pipeline} is running: wait for it to finish"
    with locked(run_lock(settings), refusal=refusal), open_instance(settings) as instance:
        active = active_runs(instance, settings.pipeline)
        if active:
            raise BatchAssetsError(
                f"the run {active[0].run_id} is queued or running: wait for it, or cancel it in the UI"
            )
        for table in tables:
            lake.drop(table, settings.pipeline)
            CompletionStore.clear_table(lake, table)
            report(f"{table} removed")
        forget_batches(instance, settings.pipeline)
    if settings.is_landing:
        landing_folder(settings).land_again()
