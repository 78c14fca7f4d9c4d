"""Choose the engine that scores with a version, and convert the model for it. The run keeps the conversion."""

import importlib.metadata
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from batch_assets.engines.catalog import ENGINES, FASTER_ENGINES, REFERENCE, IsolatedEngine, convert
from batch_assets.engines.contract import Score, ScoringModel, generate
from batch_assets.engines.conversion import CONVERSION_FILE, Conversion
from batch_assets.engines.spec import EngineSpec
from batch_assets.errors import BatchAssetsError
from batch_assets.mlflow_client import MlflowClient
from batch_assets.settings import Settings, named
from batch_assets.sources.records import Document
from batch_assets.text import sha256_of


@dataclass(frozen=True)
class Choice:
    """The chosen engine, the reason, and the folder and URI of the converted model."""

    engine: str
    reason: str
    path: str = ""
    uri: str = ""


def runs_on_gpu(settings: Settings) -> bool:
    """Whether models run on a GPU, as far as this process can tell."""
    if settings.device_map != "auto":
        return settings.device_map != "cpu"
    if is_cpu_build():
        return False
    import torch

    return bool(torch.cuda.is_available())


def is_cpu_build() -> bool:
    """Whether torch can't use a GPU; importing torch to find out would take seconds."""
    return importlib.metadata.version("torch").endswith("+cpu")


def prepare(
    client: MlflowClient,
    run_id: str,
    model: ScoringModel,
    settings: Settings,
    documents: Sequence[Document],
    reference: Mapping[str, str],
    score: Score,
    report: Callable[[str], None],
) -> None:
    """Convert a model for the engine that would score with it, compare both outputs, and store the result in the run.

    Does nothing if that was done before, or if the engine would not be used.

    Args:
        client: MLflow client.
        run_id: run that logged the model.
        model: the version, for the reference engine.
        settings: engine and precision.
        documents: held-out documents with reference answers.
        reference: SHA-256 of the text that the reference engine wrote, by SHA-256 of the document.
        score: the main score of the task, which the run has as a metric.
        report: called with each progress message.
    """
    engine = _candidate(model, settings)
    if engine.convert is None or _refusal(engine, model, settings) is not None:
        return
    metrics = client.get_run(run_id).data.metrics
    digests = [sha256_of(item.document or "") for item in documents]
    can_compare = score.name in metrics and bool(digests) and all(digest in reference for digest in digests)
    uri = _uri(client, run_id, engine, settings)
    if uri is not None:
        conversion = _read(uri)
        if conversion.refusal is not None or conversion.compared or not can_compare:
            return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / engine.name
        folder.mkdir()
        report(f"converting the model for {engine.name} in {settings.dtype}")
        conversion = convert(replace(model, engine=engine.name, dtype=settings.dtype), folder)
        conversion.write(folder)
        if conversion.refusal is None and can_compare:
            scoring = replace(model, engine=engine.name, dtype=settings.dtype, engine_path=str(folder))
            expected = [reference[digest] for digest in digests]
            conversion = _compare(scoring, conversion, documents, expected, score, metrics[score.name])
        path = conversion.write(folder)
        kept = engine.artifact(settings.dtype)
        for file in sorted(folder.iterdir()):
            if file != path:
                client.log_artifact(run_id, str(file), kept)
        # Logged last, because a folder without it is incomplete.
        client.log_artifact(run_id, str(path), kept)
    if conversion.compared:
        for metric, value in _metrics(engine.name, settings, conversion).items():
            client.log_metric(run_id, metric, value)
    report(conversion_summary(engine.name, settings.dtype, conversion))


def preparation(
    client: MlflowClient, run_id: str | None, model: ScoringModel, settings: Settings
) -> tuple[str, str] | None:
    """Name and outcome of the conversion for the engine that would score. None if there is none."""
    engine = _candidate(model, settings)
    if engine.convert is None or _refusal(engine, model, settings) is not None:
        return None
    uri = _uri(client, run_id, engine, settings)
    if uri is None:
        return None
    return f"{engine.name}-{settings.dtype}", conversion_summary(engine.name, settings.dtype, _read(uri))


def conversion_summary(engine: str, dtype: str, conversion: Conversion) -> str:
    """Describe the outcome of a conversion in one line."""
    if conversion.refusal is not None:
        return f"{engine} can't be used: {conversion.refusal}"
    if not conversion.compared:
        return f"{engine} in {dtype}: not compared with the reference"
    return (
        f"{engine} in {dtype}: {conversion.equal} of {conversion.compared} texts equal to the reference's, "
        f"{conversion.score} {conversion.score_difference:+.4f}"
    )


def choose(client: MlflowClient, run_id: str | None, model: ScoringModel, settings: Settings) -> Choice:
    """Choose the engine that the settings name, or for ``auto`` the fastest one with the reference's output.

    Args:
        client: MLflow client.
        run_id: run that logged the model, None if unknown.
        model: the version.
        settings: engine and precision.

    Raises:
        BatchAssetsError: the named engine or precision can't run this model.
    """
    is_named = settings.engine != "auto" or settings.dtype == "int8"
    by = named(settings, "engine" if settings.engine != "auto" else "dtype")
    engine = _candidate(model, settings)
    refusal = _refusal(engine, model, settings)
    if refusal is None and engine.convert is None:
        return Choice(engine.name, f"set by {by}")
    uri = None
    if refusal is None:
        uri = _uri(client, run_id, engine, settings)
        if uri is None:
            refusal = f"the model has not been converted for it: materialize {settings.champion_asset}"
            if settings.shared_model is not None:
                refusal += f", which converts it for the engine of the pipeline {settings.shared_model}"
    if uri is not None:
        conversion = _read(uri)
        refusal = conversion.refusal
        if refusal is None and is_named:
            return Choice(engine.name, f"set by {by}", _fetch(uri), uri)
        if refusal is None and conversion.compared and conversion.equal == conversion.compared:
            return Choice(engine.name, "the fastest engine with the reference's output", _fetch(uri), uri)
        refusal = refusal or conversion_summary(engine.name, settings.dtype, conversion)
    if is_named:
        value = settings.engine if settings.engine != "auto" else settings.dtype
        raise BatchAssetsError(f"{by}={value} can't be used for this model: {refusal}")
    return Choice(REFERENCE.name, f"the reference engine, instead of {engine.name}: {refusal}")


def _candidate(model: ScoringModel, settings: Settings) -> EngineSpec:
    """The engine that the settings name; for ``auto``, the first faster one that supports the model."""
    if settings.engine != "auto":
        return ENGINES[settings.engine]
    return next((engine for engine in FASTER_ENGINES if engine.refuses(model) is None), REFERENCE)


def _refusal(engine: EngineSpec, model: ScoringModel, settings: Settings) -> str | None:
    """Why an engine can't be used, regardless of its output. None if it can."""
    if model.parameters.get("do_sample") and not engine.repeats_samples:
        return f"the model samples, and only the engine {REFERENCE.name} reproduces the sampled text of each row"
    refusal = engine.refuses(model)
    if refusal is None and engine.convert is None and settings.dtype == "int8":
        return "it has no 8-bit weights"
    if refusal is not None or engine.convert is None:
        return refusal
    if settings.dtype not in ("float32", "int8"):
        return f"{named(settings, 'dtype')} is {settings.dtype}"
    if runs_on_gpu(settings):
        return "the model runs on a GPU"
    if not engine.is_installed:
        return f"the engine is not installed ({engine.installation})"
    return None


def _uri(client: MlflowClient, run_id: str | None, engine: EngineSpec, settings: Settings) -> str | None:
    """URI of the complete conversion, None if there is none."""
    kept = engine.artifact(settings.dtype)
    if run_id is None or f"{kept}/{CONVERSION_FILE}" not in [file.path for file in client.list_artifacts(run_id, kept)]:
        return None
    # Not runs:/, because MLflow copies from there even if the files are on this machine.
    return f"{client.get_run(run_id).info.artifact_uri}/{kept}"


def _read(uri: str) -> Conversion:
    import mlflow

    return Conversion.parse(mlflow.artifacts.load_text(f"{uri}/{CONVERSION_FILE}"))


def _fetch(uri: str) -> str:
    import mlflow

    return str(Path(mlflow.artifacts.download_artifacts(artifact_uri=uri)).resolve())


def _metrics(engine: str, settings: Settings, conversion: Conversion) -> dict[str, float]:
    name = f"{engine}_{settings.dtype}"
    return {
        f"{name}_equal": conversion.equal / conversion.compared,
        f"{name}_{conversion.score}_difference": conversion.score_difference,
    }


def _compare(
    model: ScoringModel,
    conversion: Conversion,
    documents: Sequence[Document],
    expected: list[str],
    score: Score,
    reference_mean: float,
) -> Conversion:
    """Score the documents that the reference engine scored, and compare the texts."""
    completions = generate(IsolatedEngine(model), [item.document or "" for item in documents])
    texts = [completion.text or "" for completion in completions]
    answers = [model.checked(completion).text or "" for completion in completions]
    mean = fmean(
        score.of(item.document or "", item.reference or "", answer)
        for item, answer in zip(documents, answers, strict=True)
    )
    return replace(
        conversion,
        compared=len(texts),
        equal=sum(sha256_of(text) == digest for text, digest in zip(texts, expected, strict=True)),
        score=score.name,
        score_difference=mean - reference_mean,
    )
