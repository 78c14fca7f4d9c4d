"""Tasks: what a model does with a text. ``summarization`` is built in, and users can add classes."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar


class Task(ABC):
    """A task that turns a text into a text; docs/tasks.md shows how to add one.

    Attributes:
        name: value of the tag on runs and versions.
        pipeline: transformers pipeline for an encoder-decoder; a decoder-only model uses text-generation.
        system_prompt: system message for a decoder-only model with a chat template.
        prompt: prompt for a decoder-only model, with ``{document}`` for the text; BATCH_ASSETS_PROMPT overrides it.
        lengths: minimum and maximum answer of an encoder-decoder in tokens; settings override them.
        new_tokens: maximum answer of a decoder-only model in tokens; settings override it.
        main_score: score that versions are compared by.
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
        """Scores of an answer against the reference, by name; higher is better."""

    @abstractmethod
    def baselines(self, document: str) -> dict[str, str]:
        """Baseline answers that need no model, by the prefix of their scores."""

    def signature(self, document: str, text: str) -> Any:
        """The MLflow signature: text in, text out."""
        from mlflow.models import infer_signature

        return infer_signature(document, text)
