"""The tables of a pipeline, whose columns depend on its task."""

import json
from functools import lru_cache

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.contracts import DEFAULT_TABLES, Column, PipelineTables, pipeline_tables
from batch_assets.settings import Settings
from batch_assets.sources.documents import source_location
from batch_assets.sources.files import is_local_name
from batch_assets.tasks.configured_task import task_of
from batch_assets.tasks.summarization import Summarization
from batch_assets.tasks.task import Task

# More pipelines than a deployment has.
_CACHED = 2000


@lru_cache(maxsize=_CACHED)
def tables_of(settings: Settings) -> PipelineTables:
    """The tables of a pipeline; those of the default one are always the talk's.

    Raises:
        BatchAssetsError: two columns have the same name, or the task can't be used.
    """
    if settings.is_default:
        return DEFAULT_TABLES
    task = task_of(settings)
    name = settings.output_column or task.output_column
    output = Column(name, task.output_type, f"{task.words[0].capitalize()} written by the model", holds="text")
    figures = [Column(figure.name, "double", figure.description) for figure in task.figures]
    histograms = [
        Column(f"{name}_histogram", "string", f"JSON: {task.words[1]} by {bins.title}")
        for name, bins in task.binned.items()
    ]
    outcomes = Column("outcomes", "string", f"JSON: number of {task.words[1]} by reference and answer")
    try:
        return pipeline_tables(
            settings.pipeline,
            output,
            task.words,
            settings.carry,
            [*figures, *histograms, outcomes],
            settings.output_table,
            has_endpoint=settings.endpoint is not None,
            identity=_identity(settings),
            source=source_location(settings),
            id_column=settings.id_column,
        )
    except ValueError as error:
        raise BatchAssetsError(f"the pipeline {settings.pipeline} can't have its tables: {error}") from error


def _identity(settings: Settings) -> str:
    """What decides which documents and answers the tables of a pipeline hold, as JSON."""
    source = [settings.written_source]
    if settings.is_in_place:
        source += [settings.batch_by, settings.every]
    if settings.dataset is not None and not is_local_name(settings.dataset):
        source += [settings.dataset_config, settings.split]
    output = [settings.output_table or f"{settings.pipeline}_predictions"]
    output.append(settings.output_column or task_of(settings).output_column)
    return json.dumps({"source": source, "columns.id": settings.id_column, "output": output})


def measured_task(settings: Settings) -> Task:
    """The task whose figures are the columns of the quality table: for the default pipeline's, summarization."""
    return Summarization() if settings.is_default else task_of(settings)
