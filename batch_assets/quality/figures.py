"""What is measured about answers: the figures that become columns of the quality table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from batch_assets.lake.contracts import SUMMARY_QUALITY
from batch_assets.quality.histograms import Bins


@dataclass(frozen=True)
class Figure:
    """A measure of an answer whose mean is a column of the quality table.

    ``title`` is how reports call it. ``needs_reference`` is true if only answers with a reference have it; their number
    then weights the mean.
    """

    name: str
    title: str
    description: str
    needs_reference: bool = False


# The descriptions are those of the columns.
_DESCRIPTIONS = {column.name: column.description for column in SUMMARY_QUALITY.columns}
TEXT_FIGURES = tuple(
    Figure(name, title, _DESCRIPTIONS[name], needs_reference)
    for name, title, needs_reference in (
        ("rouge1", "ROUGE-1", True),
        ("rouge2", "ROUGE-2", True),
        ("rougeL", "ROUGE-L", True),
        ("rougeLsum", "ROUGE-Lsum", True),
        ("lead_rouge1", "lead-3 ROUGE-1", True),
        ("words", "words", False),
        ("compression", "compression", False),
        ("coverage", "coverage", False),
        ("density", "density", False),
        ("novel_bigrams", "novel bigrams", False),
        ("repetition", "repetition", False),
    )
)


class Measurement(Protocol):
    """What a task measures; ``batch_assets.tasks.task.Task`` describes each part."""

    main_score: str
    binned: Mapping[str, Bins]

    @property
    def figures(self) -> Sequence[Figure]:
        """The figures, in the order of their columns."""

    def measure(self, document: str, reference: str | None, text: str) -> dict[str, float | None]:
        """Figures and binned values of one answer."""

    def outcome(self, reference: str, text: str) -> str | None:
        """What a pair of reference and answer counts as."""
