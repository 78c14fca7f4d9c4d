"""The task of a pipeline."""

import importlib

from batch_assets.errors import BatchAssetsError, reason
from batch_assets.settings import CLASSIFICATION, EXTRACTION, GENERATION, SUMMARIZATION, Settings, named
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
    called = f"{settings.task}, {named(settings, 'task')},"
    try:
        task = getattr(importlib.import_module(module), name)()
    except Exception as error:  # a user's module may fail in any way, and must not take other pipelines with it
        raise BatchAssetsError(f"{called} can't be used: {reason(error)}") from error
    if not isinstance(task, Task):
        raise BatchAssetsError(f"{called} is not a Task: subclass {Task.__module__}.Task")
    return task
