"""Generation: whatever a prompt asks for."""

from dataclasses import replace

from batch_assets.quality.figures import TEXT_FIGURES
from batch_assets.quality.histograms import TEXT_BINS
from batch_assets.quality.measures import per_document
from batch_assets.quality.rouge import rouge
from batch_assets.settings import GENERATION
from batch_assets.tasks.task import Task


class Generation(Task):
    """Texts that a prompt asks for, scored by ROUGE against those of a person.

    Args:
        prompt: the prompt, with ``{document}`` for the text; an encoder-decoder gets the text alone.
    """

    name = GENERATION
    system_prompt = "You are a careful writer. Answer with the requested text only."
    lengths = (0, 60)
    new_tokens = 120
    main_score = "rougeL"
    words = ("text", "texts")
    output_column = "generated_text"
    binned = TEXT_BINS
    figures = tuple(
        replace(figure, description=figure.description.replace("summary", "text"))
        for figure in TEXT_FIGURES
        if figure.name in ("rouge1", "rougeL", "words", "compression", "coverage", "repetition")
    )

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt

    def scores(self, document: str, reference: str, text: str) -> dict[str, float]:
        """ROUGE-1 and ROUGE-L."""
        return rouge(reference, text, ("rouge1", "rougeL"))

    def measure(self, document: str, reference: str | None, text: str) -> dict[str, float | None]:
        """ROUGE, and what can be measured without a reference."""
        measured = per_document(document, reference, text)
        return {figure.name: measured[figure.name] for figure in self.figures}
