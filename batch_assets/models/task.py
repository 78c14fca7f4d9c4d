"""What a model is for: a task takes a text and gives a text. ``summarization`` is the one that ships."""

import importlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from batch_assets.errors import BatchAssetsError
from batch_assets.settings import SUMMARIZATION, Settings


class Task(ABC):
    """One task; docs/tasks.md adds one step by step.

    Attributes:
        name: tag of runs and versions.
        pipeline: the transformers pipeline of an encoder-decoder for it; a decoder-only model generates text.
        system_prompt: what a decoder-only model with a chat template is told that it is.
        prompt: what it is asked, with ``{document}`` for the text; BATCH_ASSETS_PROMPT wins over it.
        lengths: shortest and longest answer of an encoder-decoder in tokens, unless settings say otherwise.
        new_tokens: longest answer of a decoder-only model, unless settings say otherwise.
        main_score: the score by which versions are compared.
    """

    name: ClassVar[str]
    pipeline: ClassVar[str]
    system_prompt: ClassVar[str]
    prompt: ClassVar[str]
    lengths: ClassVar[tuple[int, int]] = (0, 40)
    new_tokens: ClassVar[int] = 60
    main_score: ClassVar[str]

    @abstractmethod
    def scores(self, document: str, reference: str, text: str) -> dict[str, float]:
        """Scores of one answer against the one that a person wrote, by name; more is better."""

    @abstractmethod
    def baselines(self, document: str) -> dict[str, str]:
        """Answers that take no model, by a prefix for their scores."""

    def signature(self, document: str, text: str) -> Any:
        """The MLflow signature: text in, text out."""
        from mlflow.models import infer_signature

        return infer_signature(document, text)


def task_of(settings: Settings) -> Task:
    """The configured task: ``summarization``, or a class of somebody else as ``module:Class``.

    Raises:
        BatchAssetsError: there is no such class.
    """
    if settings.task == SUMMARIZATION:
        from batch_assets.models.summarization import Summarization

        return Summarization()
    module, _, name = settings.task.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
        task = found()
    except (ImportError, AttributeError, TypeError) as error:
        raise BatchAssetsError(f"BATCH_ASSETS_TASK={settings.task} can't be used: {error}") from error
    if not isinstance(task, Task):
        raise BatchAssetsError(f"BATCH_ASSETS_TASK={settings.task} is no Task: derive it from {Task.__module__}.Task")
    return task
