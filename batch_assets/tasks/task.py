"""What a task is: prompts and lengths for the model, how an answer is read, and how it is measured."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from batch_assets.quality.figures import Figure
from batch_assets.quality.histograms import Bins

NO_BINS: Mapping[str, Bins] = {}


class AnswerError(ValueError):
    """An answer that the task does not accept; the message becomes the error of the row."""


class Task(ABC):
    """A task that turns a text into an answer; docs/tasks.md shows how to add one.

    Attributes:
        name: value of the tag on runs and versions.
        pipeline: transformers pipeline for an encoder-decoder; a decoder-only model uses text-generation.
        system_prompt: system message for a decoder-only model with a chat template.
        prompt: prompt for a decoder-only model, with ``{document}`` for the text; the pipeline's prompt replaces it.
        lengths: minimum and maximum answer of an encoder-decoder in tokens; settings override them.
        new_tokens: maximum answer of a decoder-only model in tokens; settings override it.
        main_score: score that versions are compared by.
        words: what an answer and several answers are called.
        output_column: column of the answers, unless the pipeline names another one.
        output_type: type of that column, in Spark's syntax.
        binned: histograms that drift is measured on, by the name of a figure or another measured value.
    """

    name: ClassVar[str]
    pipeline: ClassVar[str] = "text2text-generation"
    system_prompt: str
    prompt: str
    cue: ClassVar[str] = "Answer:"
    lengths: ClassVar[tuple[int, int]] = (0, 40)
    new_tokens: ClassVar[int] = 60
    main_score: str
    words: ClassVar[tuple[str, str]] = ("answer", "answers")
    output_column: ClassVar[str] = "answer"
    output_type: str = "string"
    binned: Mapping[str, Bins] = NO_BINS

    @abstractmethod
    def scores(self, document: str, reference: str, text: str) -> dict[str, float]:
        """Scores of an answer against the reference, by name; higher is better."""

    def baselines(self, documents: Sequence[str], references: Sequence[str]) -> dict[str, list[str]]:
        """Answers that need no model, one per document, by the prefix of their scores; none by default."""
        return {}

    def read(self, text: str) -> str:
        """The answer in the text that a model wrote, by default all of it.

        Raises:
            AnswerError: the text is not an answer.
        """
        return text

    @property
    def reads_answers(self) -> bool:
        """Whether an answer is something else than all that the model wrote."""
        return type(self).read is not Task.read

    @property
    def rules(self) -> str:
        """What decides which texts are answers; a batch is stale when it changes. Override it with ``read``."""
        return ""

    @property
    def figures(self) -> Sequence[Figure]:
        """The columns of the quality table that depend on the task; by default the main score."""
        return (Figure(self.main_score, self.main_score, f"Mean {self.main_score}", needs_reference=True),)

    def measure(self, document: str, reference: str | None, text: str) -> dict[str, float | None]:
        """Figures and binned values of one answer; None where one can't be computed."""
        scores = {} if reference is None else self.scores(document, reference, text)
        return {figure.name: scores.get(figure.name) for figure in self.figures}

    def outcome(self, reference: str, text: str) -> str | None:
        """Reference and answer as a JSON list of two texts, to be counted in a table; None to count nothing."""
        return None

    def overall(self, outcomes: Mapping[str, int]) -> dict[str, float]:
        """Scores of many answers together, from the counts of their outcomes."""
        return {}

    def signature(self, document: str, text: str) -> Any:
        """The MLflow signature: text in, text out."""
        from mlflow.models import infer_signature

        return infer_signature(document, text)
