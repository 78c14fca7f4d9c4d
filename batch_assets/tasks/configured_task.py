"""The task of a pipeline."""

import importlib

from batch_assets.errors import BatchAssetsError
from batch_assets.settings import CLASSIFICATION, EXTRACTION, GENERATION, SUMMARIZATION, Settings
from batch_assets.tasks.task import Task


def task_of(settings: Settings) -> Task:
    """The task that the settings name: a built-in one, or a user's class as ``module:Class``.

    Raises:
        BatchAssetsError: the class does not exist or is not a Task, or the schema of an extraction is not valid.
    """
    if settings.task == SUMMARIZATION:
        from batch_assets.tasks.summarization import Summarization

        return Summarization()
    if settings.task == GENERATION:
        from batch_assets.tasks.generation import Generation

        return Generation(settings.prompt or "")
    if settings.task == CLASSIFICATION:
        from batch_assets.tasks.classification import Classification

        return Classification(dict(settings.labels or ()))
    if settings.task == EXTRACTION:
        from batch_assets.tasks.extraction import Extraction

        try:
            return Extraction(settings.answer_schema or "")
        except ValueError as error:
            raise BatchAssetsError(f"task.schema of the pipeline {settings.pipeline} is not valid: {error}") from error
    module, _, name = settings.task.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
        task = found()
    except (ImportError, AttributeError, TypeError) as error:
        raise BatchAssetsError(f"BATCH_ASSETS_TASK={settings.task} can't be used: {error}") from error
    if not isinstance(task, Task):
        raise BatchAssetsError(f"BATCH_ASSETS_TASK={settings.task} is not a Task: subclass {Task.__module__}.Task")
    return task
