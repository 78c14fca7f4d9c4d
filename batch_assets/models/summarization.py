"""Summarization, the built-in task."""

from batch_assets.models.task import Task
from batch_assets.quality.rouge import lead, rouge
from batch_assets.settings import SUMMARIZATION


class Summarization(Task):
    """Summaries, scored by ROUGE against human summaries; the baselines are a document's first sentences."""

    name = SUMMARIZATION
    pipeline = "summarization"
    system_prompt = "You are an expert editor. Answer with the summary only."
    prompt = "Summarize the following text in two or three sentences.\n\n{document}"
    lengths = (20, 40)
    new_tokens = 60
    main_score = "rouge1"

    def scores(self, document: str, reference: str, text: str) -> dict[str, float]:
        """ROUGE-1, 2, L and Lsum."""
        return rouge(reference, text)

    def baselines(self, document: str) -> dict[str, str]:
        """The first three sentences (``lead_``), and the first one (``lead1_``)."""
        return {"lead_": lead(document), "lead1_": lead(document, 1)}
