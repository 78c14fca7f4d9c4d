"""Start a pipeline afresh: remove its tables, unfinished answers and batches. Its models and runs stay."""

from collections.abc import Callable

from batch_assets.errors import BatchAssetsError
from batch_assets.graph.partitions import busy_batches, forget_batches
from batch_assets.lake.lake import Lake
from batch_assets.resources.dagster_storage import open_instance
from batch_assets.scoring.completions import CompletionStore
from batch_assets.settings import Settings
from batch_assets.tasks.output_tables import tables_of


def rows_by_table(settings: Settings) -> dict[str, int]:
    """The existing tables of a pipeline, with their numbers of rows.

    Raises:
        BatchAssetsError: it is the default pipeline, or a table belongs to another pipeline.
    """
    if settings.is_default:
        raise BatchAssetsError(
            f"the pipeline {settings.pipeline} can't be reset: set BATCH_ASSETS_HOME or BATCH_ASSETS_SCHEMA to another "
            "name"
        )
    lake = Lake.of(settings)
    return {table.name: lake.find(table).rows() for table in tables_of(settings).all if lake.exists(table)}


def reset(settings: Settings, report: Callable[[str], None]) -> None:
    """Remove the tables of a pipeline, its unfinished answers and its batches in Dagster.

    Args:
        settings: the pipeline.
        report: called with each progress message.

    Raises:
        BatchAssetsError: a run of the pipeline is queued or running, or a table belongs to another pipeline.
    """
    lake = Lake.of(settings)
    with open_instance(settings) as instance:
        busy = busy_batches(instance, settings.pipeline)
        if busy:
            raise BatchAssetsError(
                f"a run of the pipeline {settings.pipeline} is queued or running, for {', '.join(sorted(busy)[:5])}: "
                "wait for it, or cancel it in the UI"
            )
        # Answers first: without a table, nobody would look for documents that a killed reset has left.
        for table in reversed(tables_of(settings).all):
            lake.drop(table)
            CompletionStore.clear_table(lake, table)
            report(f"{table.name} removed")
        forget_batches(instance, settings.pipeline)
