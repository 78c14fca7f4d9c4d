"""Load the task that BATCH_ASSETS_TASK names."""

import importlib

from batch_assets.errors import BatchAssetsError
from batch_assets.models.summarization import Summarization
from batch_assets.models.task import Task
from batch_assets.settings import SUMMARIZATION, Settings


def task_of(settings: Settings) -> Task:
    """The configured task: ``summarization``, or a user's class as ``module:Class``.

    Raises:
        BatchAssetsError: the class does not exist or is not a Task.
    """
    if settings.task == SUMMARIZATION:
        return Summarization()
    module, _, name = settings.task.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
        task = found()
    except (ImportError, AttributeError, TypeError) as error:
        raise BatchAssetsError(f"BATCH_ASSETS_TASK={settings.task} can't be used: {error}") from error
    if not isinstance(task, Task):
        raise BatchAssetsError(f"BATCH_ASSETS_TASK={settings.task} is not a Task: subclass {Task.__module__}.Task")
    return task
