"""Classification: each text gets one of the labels."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from batch_assets.quality.figures import Figure
from batch_assets.quality.histograms import Bins
from batch_assets.settings import CLASSIFICATION
from batch_assets.tasks.task import AnswerError, Task
from batch_assets.text import label_key

_SHOWN_CHARACTERS = 60


class Classification(Task):
    """Labels, scored by accuracy; the baseline is the most frequent label of the held-out documents.

    Args:
        labels: the labels, each with a description for the prompt or None.
    """

    name = CLASSIFICATION
    lengths = (0, 20)
    new_tokens = 20
    main_score = "accuracy"
    cue = "Label:"
    words = ("label", "labels")
    output_column = "label"
    system_prompt = "You classify texts. Answer with the label only, exactly as it is written in the list."
    figures = (Figure("accuracy", "accuracy", "Share of the labels that equal the reference", needs_reference=True),)

    def __init__(self, labels: Mapping[str, str | None]) -> None:
        self.labels = tuple(labels)
        self._by_key = {label_key(label): label for label in labels}
        listed = "\n".join(f"- {label}" + (f": {text}" if text else "") for label, text in labels.items())
        self.prompt = f"Classify the following text with one of these labels:\n{_literal(listed)}\n\n{{document}}"
        self.binned = {"label": Bins.named("label", self.labels)}

    def read(self, text: str) -> str:
        """The label that the text is, whatever its case, quotation marks or full stop.

        Raises:
            AnswerError: the text is not one of the labels.
        """
        label = self._by_key.get(label_key(text))
        if label is None:
            raise AnswerError(f"the answer is not one of the labels: {text.strip()[:_SHOWN_CHARACTERS]!r}")
        return label

    @property
    def rules(self) -> str:
        """The labels."""
        return json.dumps(self.labels)

    def scores(self, document: str, reference: str, text: str) -> dict[str, float]:
        """1 if the label is that of the reference, otherwise 0."""
        return {"accuracy": float(label_key(reference) == label_key(text))}

    def baselines(self, documents: Sequence[str], references: Sequence[str]) -> dict[str, list[str]]:
        """The most frequent label (``majority_``)."""
        ((label, _),) = Counter(references).most_common(1)
        return {"majority_": [label] * len(documents)}

    def measure(self, document: str, reference: str | None, text: str) -> dict[str, float | None]:
        """The accuracy, and the position of the label."""
        place = float(self.labels.index(text)) if text in self.labels else None
        return {**super().measure(document, reference, text), "label": place}

    def outcome(self, reference: str, text: str) -> str:
        """Reference and label, for the confusion matrix."""
        return json.dumps([self._by_key.get(label_key(reference), reference), text], ensure_ascii=False)

    def overall(self, outcomes: Mapping[str, int]) -> dict[str, float]:
        """Macro F1: the mean over the labels of the harmonic mean of precision and recall.

        Opitz and Burst, Macro F1 and Macro F1, 2019, https://arxiv.org/abs/1911.03347, the first of their definitions.
        """
        counts = {tuple(json.loads(pair)): count for pair, count in outcomes.items()}
        found = []
        for label in sorted({label for pair in counts for label in pair}):
            right = counts.get((label, label), 0)
            all_of = sum(count for pair, count in counts.items() for side in pair if side == label)
            found.append(2 * right / all_of)
        return {"macro_f1": fmean(found)} if found else {}


def _literal(text: str) -> str:
    """A text in a prompt, where only ``{document}`` is replaced."""
    return text.replace("{document}", "{ document }")
