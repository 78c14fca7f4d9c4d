"""Summarization, the task of the pipeline that ships."""

from collections.abc import Sequence

from batch_assets.quality.figures import Figure
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
    figures = (
        Figure("rouge1", "ROUGE-1", "Mean ROUGE-1 F-measure", needs_reference=True),
        Figure("rouge2", "ROUGE-2", "Mean ROUGE-2 F-measure", needs_reference=True),
        Figure("rougeL", "ROUGE-L", "Mean ROUGE-L F-measure", needs_reference=True),
        Figure("rougeLsum", "ROUGE-Lsum", "Mean ROUGE-Lsum F-measure", needs_reference=True),
        Figure(
            "lead_rouge1",
            "lead-3 ROUGE-1",
            "Mean ROUGE-1 of the document's first three sentences",
            needs_reference=True,
        ),
        Figure("words", "words", "Mean length of a summary in words"),
        Figure("compression", "compression", "Mean ratio of document words to summary words"),
        Figure("coverage", "coverage", "Mean extractive fragment coverage"),
        Figure("density", "density", "Mean extractive fragment density"),
        Figure("novel_bigrams", "novel bigrams", "Mean share of bigrams that do not occur in the document"),
        Figure("repetition", "repetition", "Mean share of trigrams that repeat an earlier one"),
    )

    def scores(self, document: str, reference: str, text: str) -> dict[str, float]:
        """ROUGE-1, 2, L and Lsum."""
        return rouge(reference, text)

    def baselines(self, documents: Sequence[str], references: Sequence[str]) -> dict[str, list[str]]:
        """The first three sentences (``lead_``), and the first one (``lead1_``)."""
        return {"lead_": [lead(text) for text in documents], "lead1_": [lead(text, 1) for text in documents]}

    def measure(self, document: str, reference: str | None, text: str) -> dict[str, float | None]:
        """ROUGE, and what can be measured without a reference."""
        return per_document(document, reference, text)
