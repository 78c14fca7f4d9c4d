"""How good a logged model is on held-out documents, beside what takes no model."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from batch_assets.inference.contract import Engine, Generation
from batch_assets.models.runs import ModelRun
from batch_assets.models.samples import keep_samples
from batch_assets.models.task import Task
from batch_assets.quality import plots
from batch_assets.quality.bootstrap import interval
from batch_assets.quality.measures import measure, measure_names, name_precision, number_precision
from batch_assets.sources.records import Document

_EVALUATION_TAG = "batch_assets.evaluation"
_FOLDER = "evaluation"
# Documents between two lines of progress, a few seconds on two cores.
_REPORTED_DOCUMENTS = 5
_PRECISION = ("number_precision", "name_precision")


@dataclass(frozen=True)
class Evaluation:
    """Figures as logged to the run.

    Means of the task's scores (for summaries ``rouge1`` and so on, F-measures from 0 to 1); with ``_low`` and ``_high``
    their 95 % interval; with the prefix of a baseline (``lead_``, ``lead1_``) those of the baseline.
    """

    metrics: dict[str, float]
    is_new: bool


def evaluate(
    client: Any,
    run: ModelRun,
    task: Task,
    documents: list[Document],
    data_name: str,
    data_digest: str,
    load_engine: Callable[[], Engine],
    samples: int,
    report: Callable[[str], None],
) -> Evaluation:
    """Score held-out documents with a logged model and log what comes of it to its run, once for each data set.

    Args:
        client: MLflow client.
        run: the run of the model.
        task: what the model is for.
        documents: held-out documents, each with a text and a reference summary.
        data_name: what people call the data set.
        data_digest: SHA-256 of the documents.
        load_engine: makes the engine; not called when the figures are there already.
        samples: documents whose text may be shown.
        report: takes lines on the progress.
    """
    if run.tags.get(_EVALUATION_TAG) == data_digest:
        report(f"run {run.run_id} was evaluated on these documents already")
        return Evaluation(run.metrics, False)
    started = time.monotonic()
    generations = _score(load_engine(), documents, report)
    seconds = time.monotonic() - started
    rows = _figures(task, documents, generations)
    metrics = _metrics(rows) | {
        "evaluated_documents": float(len(documents)),
        "evaluation_documents_per_second": len(documents) / seconds,
        "seconds_per_document": seconds / len(documents),
    }
    for name, value in metrics.items():
        client.log_metric(run.run_id, name, value, model_id=run.model_id)
    _log_documents(client, run.run_id, rows, data_digest)
    _log_pictures(client, run.run_id, rows, metrics)
    _log_dataset(client, run.run_id, documents, data_name, data_digest)
    if samples:
        shown = [
            {"id": item.id, "summary": item.summary, "generated_summary": generation.text}
            for item, generation in zip(documents[:samples], generations, strict=False)
        ]
        keep_samples(client, run.run_id, _FOLDER, shown)
    client.set_tag(run.run_id, _EVALUATION_TAG, data_digest)
    return Evaluation(metrics, True)


@dataclass(frozen=True)
class Scored:
    """One held-out document as a model's run has it: its main score, that of the first baseline, whether it failed."""

    score: float
    baseline: float
    failed: bool


def scored_on(
    client: Any,
    run_id: str,
    task: Task,
    documents: Sequence[Document],
    load_engine: Callable[[], Engine],
    report: Callable[[str], None],
) -> list[Scored]:
    """What a run's model came to on each of some documents; if it has not seen them all yet, it scores them.

    What was logged as the run's evaluation stays as it is.
    """
    known = _rows(client, run_id)
    if any(sha256(item.document or "") not in known for item in documents):
        report(f"scoring {len(documents)} documents with the model of run {run_id}, which was evaluated on others")
        rows = _figures(task, documents, _score(load_engine(), documents, report))
        _log_documents(client, run_id, rows, sha256("".join(row["document_sha256"] for row in rows)))
        known |= {row["document_sha256"]: row for row in rows}
    rows = [known[sha256(item.document or "")] for item in documents]
    return [Scored(_main(task, row, ""), _main(task, row, _first_baseline(row)), _failed(row)) for row in rows]


def _main(task: Task, row: Mapping[str, Any], prefix: str) -> float:
    return float(row["scores"][f"{prefix}{task.main_score}"])


def _first_baseline(row: Mapping[str, Any]) -> str:
    return str(row["baselines"][0]) if row["baselines"] else ""


def _failed(row: Mapping[str, Any]) -> bool:
    return row["error_message"] is not None


def _score(engine: Engine, documents: Sequence[Document], report: Callable[[str], None]) -> list[Generation]:
    # All at once, so that the engine can put documents of like length together.
    generations: dict[int, Generation] = {}
    for place, generation in engine.stream([item.document or "" for item in documents]):
        generations[place] = generation
        if len(generations) % _REPORTED_DOCUMENTS == 0 or len(generations) == len(documents):
            report(f"evaluated {len(generations)} of {len(documents)} documents")
    return [generations[place] for place in range(len(documents))]


def _figures(task: Task, documents: Sequence[Document], generations: Sequence[Generation]) -> list[dict[str, Any]]:
    """What is known of each text. Digests, not texts: those may not be shown."""
    rows = []
    for item, generation in zip(documents, generations, strict=True):
        document, reference, text = item.document or "", item.summary or "", generation.text or ""
        measured = measure(document, text)
        baselines = task.baselines(document)
        scores = dict(task.scores(document, reference, text))
        for prefix, baseline in baselines.items():
            scores |= {f"{prefix}{name}": score for name, score in task.scores(document, reference, baseline).items()}
        rows.append(
            {
                "id": item.id,
                "source": item.source,
                "document_sha256": sha256(document),
                "generated_summary_sha256": sha256(text),
                "finish_reason": generation.finish_reason,
                "input_tokens": generation.input_tokens,
                "output_tokens": generation.output_tokens,
                "input_truncated": generation.input_truncated,
                "error_message": generation.error_message,
                "scores": scores,
                "baselines": list(baselines),
                **(dict.fromkeys(measure_names()) if measured is None else asdict(measured)),
                "number_precision": number_precision(document, text),
                "name_precision": name_precision(document, text),
            }
        )
    return rows


def _metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name in rows[0]["scores"]:
        values = [row["scores"][name] for row in rows]
        metrics[name] = fmean(values)
        metrics[f"{name}_low"], metrics[f"{name}_high"] = interval(values)
    for name in (*measure_names(), *_PRECISION):
        values = [row[name] for row in rows if row[name] is not None]
        if values:
            metrics[name] = fmean(values)
    shares = {
        "error_rate": [_failed(row) for row in rows],
        "empty_rate": [row["words"] is None for row in rows],
        "length_rate": [row["finish_reason"] == "length" for row in rows],
        "input_truncated_rate": [bool(row["input_truncated"]) for row in rows],
    }
    return metrics | {name: fmean(values) for name, values in shares.items()}


def sha256(text: str) -> str:
    """The digest by which texts are compared where they may not be kept."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def evaluated(client: Any, run_id: str) -> dict[str, str]:
    """SHA-256 of the summaries that a run's model wrote when it was evaluated, by those of the documents."""
    return {digest: row["generated_summary_sha256"] for digest, row in _rows(client, run_id).items()}


def evaluated_scores(client: Any, run_id: str, task: Task) -> dict[str, float]:
    """Main scores of a run's model on the documents that it was evaluated on, by their SHA-256."""
    return {digest: _main(task, row, "") for digest, row in _rows(client, run_id).items()}


def _rows(client: Any, run_id: str) -> dict[str, dict[str, Any]]:
    """Figures of all documents that a run's model was evaluated on, by SHA-256 of the document."""
    import mlflow

    files = [
        file.path for file in client.list_artifacts(run_id, _FOLDER) if file.path.startswith(f"{_FOLDER}/documents-")
    ]
    root = client.get_run(run_id).info.artifact_uri
    rows = [row for file in files for row in json.loads(mlflow.artifacts.load_text(f"{root}/{file}"))]
    return {row["document_sha256"]: row for row in rows}


def _log_documents(client: Any, run_id: str, rows: list[dict[str, Any]], data_digest: str) -> None:
    client.log_text(run_id, json.dumps(rows, indent=1), f"{_FOLDER}/documents-{data_digest[:16]}.json")


def _log_pictures(client: Any, run_id: str, rows: list[dict[str, Any]], metrics: dict[str, float]) -> None:
    """A table that MLflow shows, and plots."""
    import pandas as pd

    flat = [
        {**row["scores"], **{key: value for key, value in row.items() if not isinstance(value, dict | list)}}
        for row in rows
    ]
    client.log_table(run_id, pd.DataFrame(flat).astype({"error_message": "string"}), f"{_FOLDER}/table.json")
    systems = ["", *rows[0]["baselines"]]
    names = [name for name in rows[0]["scores"] if not any(prefix and name.startswith(prefix) for prefix in systems)]
    figures = {
        prefix.rstrip("_") or "model": {
            name: (metrics[f"{prefix}{name}"], metrics[f"{prefix}{name}_low"], metrics[f"{prefix}{name}_high"])
            for name in names
        }
        for prefix in systems
    }
    client.log_figure(run_id, plots.scores(figures), f"{_FOLDER}/scores.png")
    titles = {"words": "words of an answer", "compression": "words of the document for one of the answer"}
    for name, title in titles.items():
        values = [row[name] for row in rows if row[name] is not None]
        if values:
            client.log_figure(run_id, plots.distribution(values, title), f"{_FOLDER}/{name}.png")


def _log_dataset(client: Any, run_id: str, documents: list[Document], data_name: str, data_digest: str) -> None:
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
    tags = [InputTag("mlflow.data.context", "evaluation")]
    client.log_inputs(run_id, datasets=[DatasetInput(data._to_mlflow_entity(), tags)])
