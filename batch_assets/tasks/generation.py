"""Generation: whatever a prompt asks for."""

from batch_assets.quality.figures import Figure
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
    figures = (
        Figure("rouge1", "ROUGE-1", "Mean ROUGE-1 F-measure", needs_reference=True),
        Figure("rougeL", "ROUGE-L", "Mean ROUGE-L F-measure", needs_reference=True),
        Figure("words", "words", "Mean length of a text in words"),
        Figure("compression", "compression", "Mean ratio of the document's words to the text's"),
        Figure("coverage", "coverage", "Mean extractive fragment coverage"),
        Figure("repetition", "repetition", "Mean share of trigrams that repeat an earlier one"),
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
