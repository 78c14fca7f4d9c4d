"""What is measured about answers: the figures that become columns of the quality table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

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
