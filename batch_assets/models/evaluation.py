"""Evaluate a logged model on held-out documents, and compare it with baselines that need no model."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from batch_assets.engines.contract import Completion, Engine
from batch_assets.mlflow_client import MlflowClient
from batch_assets.models.model_runs import ModelRun
from batch_assets.models.samples import keep_samples
from batch_assets.quality import plots
from batch_assets.quality.bootstrap import interval
from batch_assets.quality.measures import measure, measure_names, name_precision, number_precision
from batch_assets.sources.records import Document
from batch_assets.tasks.task import Task
from batch_assets.text import sha256_of

_EVALUATION_TAG = "batch_assets.evaluation"
_FOLDER = "evaluation"
# Documents between two progress messages, a few seconds on two cores.
_REPORT_EVERY = 5
_PRECISION = ("number_precision", "name_precision")


@dataclass(frozen=True)
class Evaluation:
    """The metrics of an evaluation, as logged to the run.

    They include the means of the task's scores (for summaries ``rouge1`` and so on, F-measures from 0 to 1). The
    suffixes ``_low`` and ``_high`` mark the 95 % interval, the prefixes ``lead_`` and ``lead1_`` the baselines.
    """

    metrics: dict[str, float]
    is_new: bool


def evaluate(
    client: MlflowClient,
    run: ModelRun,
    task: Task,
    documents: list[Document],
    data_name: str,
    data_digest: str,
    load_engine: Callable[[], Engine],
    samples: int,
    report: Callable[[str], None],
) -> Evaluation:
    """Score held-out documents with a logged model and log the metrics to its run, once per data set.

    Args:
        client: MLflow client.
        run: the model's run.
        task: the model's task.
        documents: held-out documents, each with a text and a reference.
        data_name: display name of the data set.
        data_digest: SHA-256 of the documents.
        load_engine: loads the engine; not called if the run was already evaluated on these documents.
        samples: number of documents whose text may be shown.
        report: called with each progress message.
    """
    if run.tags.get(_EVALUATION_TAG) == data_digest:
        report(f"run {run.run_id} was already evaluated on these documents")
        return Evaluation(run.metrics, False)
    started = time.monotonic()
    completions = _score(load_engine(), documents, report)
    seconds = time.monotonic() - started
    rows = _results(task, documents, completions)
    metrics = _metrics(task, rows) | {
        "evaluated_documents": float(len(documents)),
        "evaluation_documents_per_second": len(documents) / seconds,
        "seconds_per_document": seconds / len(documents),
    }
    _log_metrics(client, run, metrics)
    _log_documents(client, run.run_id, rows, data_digest)
    _log_plots(client, run.run_id, rows, metrics)
    _log_dataset(client, run.run_id, documents, data_name, data_digest)
    if samples:
        shown = [
            {"id": item.id, "reference": item.reference, task.output_column: completion.text}
            for item, completion in zip(documents[:samples], completions, strict=False)
        ]
        keep_samples(client, run.run_id, _FOLDER, shown)
    client.set_tag(run.run_id, _EVALUATION_TAG, data_digest)
    return Evaluation(metrics, True)


@dataclass(frozen=True)
class DocumentResult:
    """A model's result for one held-out document.

    Args:
        score: its main score.
        baseline: the first baseline's main score, None if the task has no baseline.
        failed: whether the model gave no answer.
    """

    score: float
    baseline: float | None
    failed: bool


def results_on(
    client: MlflowClient,
    run_id: str,
    task: Task,
    documents: Sequence[Document],
    load_engine: Callable[[], Engine],
    report: Callable[[str], None],
) -> list[DocumentResult]:
    """Results of a run's model on some documents, which are scored first if the run lacks any of them.

    The logged evaluation of the run does not change.

    Args:
        client: MLflow client.
        run_id: the model's run.
        task: the model's task.
        documents: held-out documents, each with a text and a reference.
        load_engine: loads the engine; not called if the run has results for all documents.
        report: called with each progress message.
    """
    known = _logged_results(client, run_id)
    if any(sha256_of(item.document or "") not in known for item in documents):
        report(
            f"scoring {len(documents)} documents with the model of run {run_id}, which was evaluated on other documents"
        )
        rows = _results(task, documents, _score(load_engine(), documents, report))
        _log_documents(client, run_id, rows, sha256_of("".join(row["document_sha256"] for row in rows)))
        known |= {row["document_sha256"]: row for row in rows}
    rows = [known[sha256_of(item.document or "")] for item in documents]
    return [DocumentResult(_main_score(task, row, ""), _baseline_score(task, row), _failed(row)) for row in rows]


def _main_score(task: Task, row: Mapping[str, Any], prefix: str) -> float:
    return float(row["scores"][f"{prefix}{task.main_score}"])


def _baseline_score(task: Task, row: Mapping[str, Any]) -> float | None:
    return _main_score(task, row, str(row["baselines"][0])) if row["baselines"] else None


def _failed(row: Mapping[str, Any]) -> bool:
    return row["error_message"] is not None


def _score(engine: Engine, documents: Sequence[Document], report: Callable[[str], None]) -> list[Completion]:
    # All in one call, so that the engine can group documents of similar length.
    completions: dict[int, Completion] = {}
    for place, completion in engine.stream([item.document or "" for item in documents]):
        completions[place] = completion
        if len(completions) % _REPORT_EVERY == 0 or len(completions) == len(documents):
            report(f"evaluated {len(completions)} of {len(documents)} documents")
    return [completions[place] for place in range(len(documents))]


def _results(task: Task, documents: Sequence[Document], completions: Sequence[Completion]) -> list[dict[str, Any]]:
    """Results for each document. They hold digests instead of texts, which may be confidential."""
    rows = []
    baselines = task.baselines(
        [item.document or "" for item in documents], [item.reference or "" for item in documents]
    )
    for place, (item, completion) in enumerate(zip(documents, completions, strict=True)):
        document, reference = item.document or "", item.reference or ""
        text, error = _answer(task, completion)
        measured = measure(document, text)
        scores = dict(task.scores(document, reference, text))
        for prefix, answers in baselines.items():
            found = task.scores(document, reference, answers[place])
            scores |= {f"{prefix}{name}": score for name, score in found.items()}
        rows.append(
            {
                "id": item.id,
                "source": item.source,
                "document_sha256": sha256_of(document),
                "generated_summary_sha256": sha256_of(completion.text or ""),
                "finish_reason": completion.finish_reason,
                "input_tokens": completion.input_tokens,
                "output_tokens": completion.output_tokens,
                "input_truncated": completion.input_truncated,
                "error_message": error,
                "scores": scores,
                "baselines": list(baselines),
                "outcome": task.outcome(reference, text) if error is None else None,
                **(dict.fromkeys(measure_names()) if measured is None else asdict(measured)),
                "number_precision": number_precision(document, text),
                "name_precision": name_precision(document, text),
            }
        )
    return rows


def _answer(task: Task, completion: Completion) -> tuple[str, str | None]:
    """The answer in what a model wrote, or an empty text and why there is none."""
    if completion.text is None:
        return "", completion.error_message
    try:
        return task.read(completion.text), None
    except ValueError as error:
        return "", str(error)


def _metrics(task: Task, rows: list[dict[str, Any]]) -> dict[str, float]:
    metrics: dict[str, float] = task.overall(Counter(row["outcome"] for row in rows if row["outcome"] is not None))
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


def text_digests(client: MlflowClient, run_id: str) -> dict[str, str]:
    """SHA-256 of each text that a run's model wrote in its evaluation, by SHA-256 of the document."""
    return {digest: row["generated_summary_sha256"] for digest, row in _logged_results(client, run_id).items()}


def evaluated_scores(client: MlflowClient, run_id: str, task: Task) -> dict[str, float]:
    """Main score of each document that a run's model was evaluated on, by SHA-256 of the document."""
    return {digest: _main_score(task, row, "") for digest, row in _logged_results(client, run_id).items()}


def _logged_results(client: MlflowClient, run_id: str) -> dict[str, dict[str, Any]]:
    """Results for all documents that a run's model was evaluated on, by SHA-256 of the document."""
    import mlflow

    files = [
        file.path for file in client.list_artifacts(run_id, _FOLDER) if file.path.startswith(f"{_FOLDER}/documents-")
    ]
    root = client.get_run(run_id).info.artifact_uri
    rows = [row for file in files for row in json.loads(mlflow.artifacts.load_text(f"{root}/{file}"))]
    return {row["document_sha256"]: row for row in rows}


def _log_metrics(client: MlflowClient, run: ModelRun, metrics: Mapping[str, float]) -> None:
    """Log all metrics with one request."""
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    logged = [Metric(name, value, now, 0, model_id=run.model_id) for name, value in metrics.items()]
    client.log_batch(run.run_id, metrics=logged)


def _log_documents(client: MlflowClient, run_id: str, rows: list[dict[str, Any]], data_digest: str) -> None:
    client.log_text(run_id, json.dumps(rows, indent=1), f"{_FOLDER}/documents-{data_digest[:16]}.json")


def _log_plots(client: MlflowClient, run_id: str, rows: list[dict[str, Any]], metrics: dict[str, float]) -> None:
    """Log plots, and a table that the MLflow UI shows."""
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
    titles = {"words": "words per answer", "compression": "document words per answer word"}
    for name, title in titles.items():
        values = [row[name] for row in rows if row[name] is not None]
        if values:
            client.log_figure(run_id, plots.distribution(values, title), f"{_FOLDER}/{name}.png")


def _log_dataset(
    client: MlflowClient, run_id: str, documents: list[Document], data_name: str, data_digest: str
) -> None:
    import mlflow.data
    import pandas as pd
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.entities import DatasetInput, InputTag

    frame = pd.DataFrame({"document": [d.document for d in documents], "reference": [d.reference for d in documents]})
    data = mlflow.data.from_pandas(
        frame,
        source=CodeDatasetSource(tags={"data_set": data_name}),
        name=data_name,
        targets="reference",
        digest=data_digest[:32],
    )
    tags = [InputTag("mlflow.data.context", "evaluation")]
    client.log_inputs(run_id, datasets=[DatasetInput(data._to_mlflow_entity(), tags)])
