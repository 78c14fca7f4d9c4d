"""Run the whole graph of a pipeline, unless nothing has changed since the last run."""

from collections.abc import Callable
from pathlib import Path

import dagster as dg

from batch_assets.errors import BatchAssetsError
from batch_assets.operations.unchanged_run import digest_of_inputs, last_run_with_same_state, record_state
from batch_assets.resources.dagster_storage import existing_instance
from batch_assets.settings import Settings, redacted
from batch_assets.sources.configured import scored_dataset
from batch_assets.sources.dataset import Dataset


def run_lock(settings: Settings) -> Path:
    """The file that a run of a pipeline locks."""
    return settings.home / (".run.lock" if settings.is_default else f".run-{settings.pipeline}.lock")


def run_graph(
    settings: Settings, definitions: Callable[[Settings], dg.Definitions], report: Callable[[str], None]
) -> tuple[list[str], list[str]]:
    """Run a pipeline; only one process per home and pipeline may do so at a time.

    Args:
        settings: the pipeline.
        definitions: builds its definitions.
        report: called with each progress message.

    Returns:
        The batches, and what failed.

    Raises:
        BatchAssetsError: a problem must be fixed first.
    """
    dataset = scored_dataset(settings)
    if (earlier := existing_instance(settings)) is not None:
        with earlier:
            run_id = last_run_with_same_state(earlier, settings, dataset)
        if run_id is not None:
            report(f"nothing has changed since run {run_id}, so there is nothing to do")
            return _batches(settings, dataset), []
    # Only a run that has work to do imports the rest.
    from batch_assets.graph.partitions import register_batches
    from batch_assets.graph.pipeline_names import MATERIALIZE_ALL
    from batch_assets.lake.lake import Lake
    from batch_assets.models.checkpoint_sources import checkpoint_source
    from batch_assets.models.transformers_pipeline import generation_parameters
    from batch_assets.operations.local_runs import close_dead_runs, close_orphaned_runs, held_pools, materialize
    from batch_assets.operations.preflight import check_run
    from batch_assets.resources.dagster_storage import open_instance
    from batch_assets.resources.spark import SparkResource
    from batch_assets.sources.landing import obsolete_batches
    from batch_assets.tasks.output_tables import tables_of

    dataset = check_run(settings)
    batches = _batches(settings, dataset)
    shared = settings.shared_model
    model = settings.model if shared is None else f"of the pipeline {shared}"
    report(f"{len(batches)} batches of {dataset.name}, model {model}, state in {settings.home}")
    if shared is None:
        report("preparing the checkpoint (about 15 seconds the first time)")
        generation_parameters(checkpoint_source(settings).load(), settings)
    inputs = digest_of_inputs(settings, dataset)
    with open_instance(settings) as instance:
        for run_id in [*close_dead_runs(instance, settings.pipeline), *close_orphaned_runs(instance)]:
            report(f"run {run_id} was killed; this run continues where it stopped")
        for pool, run_id in held_pools(instance):
            report(f"waiting for run {run_id}, which holds the pool {pool} (if it is dead, cancel it in the UI)")
        register_batches(instance, settings.pipeline, batches)
        lake, tables = Lake.of(settings), tables_of(settings)
        for batch in [] if settings.is_in_place else obsolete_batches(dataset, lake, tables.documents):
            report(f"{dataset.name} no longer contains the batch {batch} with these settings; its rows are kept")
        if not lake.exists(tables.scored):
            # Logging and evaluating the model comes first and mostly uses one core: start Spark in the meantime.
            SparkResource.of(settings).start_ahead()
        failures = materialize(definitions(settings), instance, settings.pipeline, MATERIALIZE_ALL, batches)
        if not failures:
            record_state(instance, settings, batches, inputs)
    return batches, failures


def _batches(settings: Settings, dataset: Dataset) -> list[str]:
    """The batches of the data set; without one, those of the documents and those that wait to be landed.

    Raises:
        BatchAssetsError: there are none yet.
    """
    if settings.dataset is not None:
        return dataset.batches()
    from batch_assets.lake.lake import Lake
    from batch_assets.sources.configured import landing_folder
    from batch_assets.sources.documents import find_documents
    from batch_assets.tasks.output_tables import tables_of

    if settings.is_in_place:
        lake, tables = Lake.of(settings), tables_of(settings)
        documents = find_documents(lake, settings, tables)
        # The answers to a deleted batch are removed by the next run.
        batches = list(dict.fromkeys([*documents.batches(), *lake.find(tables.scored).batches()]))
        if not batches:
            raise BatchAssetsError(f"the pipeline {settings.pipeline} has no documents yet: {dataset.name} has no rows")
        return batches
    folder = landing_folder(settings)
    waiting = [batch for name in folder.pending() for batch in folder.keys_of(name)]
    batches = [*Lake.of(settings).find(tables_of(settings).documents).batches(), *waiting]
    if not batches:
        raise BatchAssetsError(
            f"the pipeline {settings.pipeline} has no documents yet: land files with 'batch-assets land --pipeline "
            f"{settings.pipeline} FILES', or drop them into {redacted(settings.landing_folder)} while "
            "'batch-assets ui' runs"
        )
    return list(dict.fromkeys(batches))
