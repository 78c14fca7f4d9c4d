"""ROUGE of a logged model on held-out documents, beside the lead baseline."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from batch_assets.inference.contract import Engine, generate
from batch_assets.models.runs import ModelRun
from batch_assets.models.samples import keep_samples
from batch_assets.quality.rouge import ROUGE_TYPES, lead, mean_rouge
from batch_assets.sources.records import Document

_EVALUATION_TAG = "batch_assets.evaluation"
_DOCUMENTS = "evaluation/documents.json"
# Documents between two lines of progress, a few seconds on two cores.
_REPORTED_DOCUMENTS = 5


@dataclass(frozen=True)
class Evaluation:
    """Figures as logged to the run: ``rouge1`` and so on, and ``lead_rouge1`` and so on for the baseline."""

    metrics: dict[str, float]
    is_new: bool


def evaluate(
    client: Any,
    run: ModelRun,
    documents: list[Document],
    data_name: str,
    data_digest: str,
    load_engine: Callable[[], Engine],
    samples: int,
    report: Callable[[str], None],
) -> Evaluation:
    """Score held-out documents with a logged model and log ROUGE to its run, once for each data set.

    Args:
        client: MLflow client.
        run: the run of the model.
        documents: held-out documents, each with a text and a reference summary.
        data_name: what people call the data set.
        data_digest: SHA-256 of the documents.
        load_engine: makes the engine; not called when the figures are there already.
        samples: documents whose text may be shown.
        report: takes lines on the progress.
    """
    wanted = [f"{prefix}{name}" for prefix in ("", "lead_") for name in ROUGE_TYPES]
    if run.tags.get(_EVALUATION_TAG) == data_digest:
        report(f"run {run.run_id} was evaluated on these documents already")
        return Evaluation({name: run.metrics[name] for name in wanted}, False)

    engine = load_engine()
    started = time.monotonic()
    texts: list[str] = []
    errors = 0
    for start in range(0, len(documents), _REPORTED_DOCUMENTS):
        part = documents[start : start + _REPORTED_DOCUMENTS]
        for generation in generate(engine, [item.document or "" for item in part]):
            texts.append(generation.text or "")
            errors += generation.error_message is not None
        report(f"evaluated {len(texts)} of {len(documents)} documents")
    seconds = time.monotonic() - started
    references = [item.summary or "" for item in documents]
    metrics = mean_rouge(list(zip(references, texts, strict=True)))
    baseline = mean_rouge([(item.summary or "", lead(item.document or "")) for item in documents])
    metrics |= {f"lead_{name}": value for name, value in baseline.items()}
    metrics |= {
        "evaluated_documents": float(len(documents)),
        "evaluation_errors": float(errors),
        "evaluation_documents_per_second": len(documents) / seconds,
    }
    _log(client, run, metrics, documents, texts, data_name, data_digest, samples)
    return Evaluation({name: metrics[name] for name in wanted}, True)


def sha256(text: str) -> str:
    """The digest by which texts are compared where they may not be kept."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def evaluated(client: Any, run_id: str) -> dict[str, str]:
    """SHA-256 of the summaries that a run's model wrote when it was evaluated, by those of the documents."""
    import mlflow

    folder, _, _ = _DOCUMENTS.partition("/")
    if _DOCUMENTS not in [file.path for file in client.list_artifacts(run_id, folder)]:
        return {}
    rows = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{_DOCUMENTS}"))
    return {row["document_sha256"]: row["generated_summary_sha256"] for row in rows if "document_sha256" in row}


def _log(
    client: Any,
    run: ModelRun,
    metrics: dict[str, float],
    documents: list[Document],
    texts: list[str],
    data_name: str,
    data_digest: str,
    samples: int,
) -> None:
    """Write everything to the run through the client, which leaves the run finished."""
    import mlflow.data
    import pandas as pd
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.entities import DatasetInput, InputTag

    frame = pd.DataFrame({"document": [d.document for d in documents], "summary": [d.summary for d in documents]})
    data = mlflow.data.from_pandas(
        frame,
        source=CodeDatasetSource(tags={"data_set": data_name}),
        name=data_name,
        targets="summary",
        digest=data_digest[:32],
    )
    client.log_inputs(
        run.run_id,
        datasets=[DatasetInput(data._to_mlflow_entity(), [InputTag("mlflow.data.context", "evaluation")])],
    )
    for name, value in metrics.items():
        client.log_metric(run.run_id, name, value, model_id=run.model_id)
    # Digests, not texts: those may not be shown.
    digests = [
        {
            "id": item.id,
            "source": item.source,
            "document_sha256": sha256(item.document or ""),
            "generated_summary_sha256": sha256(text),
        }
        for item, text in zip(documents, texts, strict=True)
    ]
    client.log_text(run.run_id, json.dumps(digests, indent=1), _DOCUMENTS)
    if samples:
        rows = [
            {"id": item.id, "summary": item.summary, "generated_summary": text}
            for item, text in zip(documents[:samples], texts, strict=False)
        ]
        keep_samples(client, run.run_id, "evaluation", rows)
    client.set_tag(run.run_id, _EVALUATION_TAG, data_digest)
