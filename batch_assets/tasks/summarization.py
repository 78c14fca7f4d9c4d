"""Summarization, the task of the pipeline that ships."""

from collections.abc import Sequence

from batch_assets.quality.figures import TEXT_FIGURES
from batch_assets.quality.histograms import TEXT_BINS
from batch_assets.quality.measures import per_document
from batch_assets.quality.rouge import lead, rouge
from batch_assets.settings import SUMMARIZATION
from batch_assets.tasks.task import Task


class Summarization(Task):
    """Summaries, scored by ROUGE against human summaries; the baselines are a document's first sentences."""

    name = SUMMARIZATION
    pipeline = "summarization"
    system_prompt = "You are an expert editor. Answer with the summary only."
    prompt = "Summarize the following text in two or three sentences.\n\n{document}"
    cue = "Summary:"
    lengths = (20, 40)
    new_tokens = 60
    main_score = "rouge1"
    words = ("summary", "summaries")
    output_column = "generated_summary"
    binned = TEXT_BINS
    figures = TEXT_FIGURES

    def scores(self, document: str, reference: str, text: str) -> dict[str, float]:
        """ROUGE-1, 2, L and Lsum."""
        return rouge(reference, text)

    def baselines(self, documents: Sequence[str], references: Sequence[str]) -> dict[str, list[str]]:
        """The first three sentences (``lead_``), and the first one (``lead1_``)."""
        return {"lead_": [lead(text) for text in documents], "lead1_": [lead(text, 1) for text in documents]}

    def measure(self, document: str, reference: str | None, text: str) -> dict[str, float | None]:
        """ROUGE, and what can be measured without a reference."""
        return per_document(document, reference, text)
