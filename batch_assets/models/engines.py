"""Which engine scores with a version, and what is converted for it and kept with the version's run."""

import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.inference.contract import ScoringModel, generate
from batch_assets.inference.conversion import CONVERSION_FILE, Conversion
from batch_assets.inference.engines import CTRANSLATE2, MLFLOW, OPENVINO, TRANSFORMERS, is_installed, load_engine
from batch_assets.models import ctranslate2_conversion, openvino_conversion
from batch_assets.models.evaluation import sha256
from batch_assets.quality.rouge import mean_rouge
from batch_assets.settings import Settings
from batch_assets.sources.records import Document

# Name of the package and what makes a conversion.
_CONVERTERS: dict[str, tuple[str, Callable[[ScoringModel, Path], Conversion]]] = {
    CTRANSLATE2: ("ctranslate2", ctranslate2_conversion.convert),
    OPENVINO: ("openvino-genai", openvino_conversion.convert),
}


@dataclass(frozen=True)
class Choice:
    """An engine, why it is that one, the folder of what was converted for it, and that folder's address."""

    engine: str
    reason: str
    path: str = ""
    uri: str = ""


def goes_to_gpu(settings: Settings) -> bool:
    """Whether models run on a GPU, as far as can be seen from here."""
    if settings.device_map != "auto":
        return settings.device_map != "cpu"
    if importlib.metadata.version("torch").endswith("+cpu"):
        return False  # known without the import, which takes seconds
    import torch

    return bool(torch.cuda.is_available())


def prepare(
    client: Any,
    run_id: str,
    model: ScoringModel,
    settings: Settings,
    documents: Sequence[Document],
    reference: Mapping[str, str],
    report: Callable[[str], None],
) -> None:
    """Convert a model for the engine that would score with it, compare the two, and keep the result with its run.

    Nothing is done where that was done before, or where the engine would not be used.

    Args:
        client: MLflow client.
        run_id: run that the model was logged in.
        model: the version, for the reference engine.
        settings: name engine and precision.
        documents: held-out documents with summaries.
        reference: SHA-256 of the summary that the reference wrote, by that of the document.
        report: takes lines on what happens.
    """
    engine = _candidate(model, settings)
    if engine not in _CONVERTERS or _refusal(engine, model, settings) is not None:
        return
    metrics = client.get_run(run_id).data.metrics
    digests = [sha256(item.document or "") for item in documents]
    can_compare = "rouge1" in metrics and bool(digests) and all(digest in reference for digest in digests)
    uri = _uri(client, run_id, engine, settings)
    if uri is not None:
        conversion = _read(uri)
        if conversion.refusal is not None or conversion.compared or not can_compare:
            return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / engine
        folder.mkdir()
        report(f"converting the model for {engine} in {settings.dtype}")
        conversion = _CONVERTERS[engine][1](replace(model, engine=engine, dtype=settings.dtype), folder)
        conversion.write(folder)
        if conversion.refusal is None and can_compare:
            scoring = replace(model, engine=engine, dtype=settings.dtype, engine_path=str(folder))
            expected = [reference[digest] for digest in digests]
            conversion = _compare(scoring, conversion, documents, expected, metrics["rouge1"])
        path = conversion.write(folder)
        kept = _artifact(engine, settings)
        for file in sorted(folder.iterdir()):
            if file != path:
                client.log_artifact(run_id, str(file), kept)
        # Last: a folder without it is not complete.
        client.log_artifact(run_id, str(path), kept)
    if conversion.compared:
        for metric, value in _figures(engine, settings, conversion).items():
            client.log_metric(run_id, metric, value)
    report(conversion_summary(engine, settings.dtype, conversion))


def preparation(client: Any, run_id: str | None, model: ScoringModel, settings: Settings) -> tuple[str, str] | None:
    """Name and outcome of what was converted for the engine that would score; None if nothing was."""
    engine = _candidate(model, settings)
    if engine not in _CONVERTERS or _refusal(engine, model, settings) is not None:
        return None
    uri = _uri(client, run_id, engine, settings)
    if uri is None:
        return None
    return f"{engine}-{settings.dtype}", conversion_summary(engine, settings.dtype, _read(uri))


def conversion_summary(engine: str, dtype: str, conversion: Conversion) -> str:
    """What a conversion came to, in a line."""
    if conversion.refusal is not None:
        return f"{engine} can't be used: {conversion.refusal}"
    if not conversion.compared:
        return f"{engine} in {dtype}: not compared with the reference"
    return (
        f"{engine} in {dtype}: {conversion.equal} of {conversion.compared} summaries as the reference writes them, "
        f"ROUGE-1 {conversion.rouge1_difference:+.4f}"
    )


def choose(client: Any, run_id: str | None, model: ScoringModel, settings: Settings) -> Choice:
    """The engine that settings name, or for ``auto`` the fastest that gives the reference's output.

    Raises:
        BatchAssetsError: the engine or the precision that is named can't run this model.
    """
    named = settings.engine != "auto" or settings.dtype == "int8"
    by = "BATCH_ASSETS_ENGINE" if settings.engine != "auto" else "BATCH_ASSETS_DTYPE"
    engine = _candidate(model, settings)
    refusal = _refusal(engine, model, settings)
    if refusal is None and engine not in _CONVERTERS:
        return Choice(engine, f"named by {by}")
    uri = None
    if refusal is None:
        uri = _uri(client, run_id, engine, settings)
        refusal = "it was not converted: materialize champion_model" if uri is None else None
    if uri is not None:
        conversion = _read(uri)
        refusal = conversion.refusal
        if refusal is None and named:
            return Choice(engine, f"named by {by}", _fetch(uri), uri)
        if refusal is None and conversion.compared and conversion.equal == conversion.compared:
            return Choice(engine, "the fastest with the reference's output", _fetch(uri), uri)
        refusal = refusal or conversion_summary(engine, settings.dtype, conversion)
    if named:
        value = settings.engine if settings.engine != "auto" else settings.dtype
        raise BatchAssetsError(f"{by}={value} can't be used for this model: {refusal}")
    return Choice(TRANSFORMERS, f"the reference; not {engine}: {refusal}")


def _candidate(model: ScoringModel, settings: Settings) -> str:
    if settings.engine != "auto":
        return settings.engine
    return CTRANSLATE2 if model.template is None else OPENVINO


def _refusal(engine: str, model: ScoringModel, settings: Settings) -> str | None:
    """Why an engine is out of the question, whatever it would write."""
    if engine == TRANSFORMERS:
        return None
    if model.parameters.get("do_sample"):
        return "the model samples, which only the engine transformers repeats row by row"
    if engine == MLFLOW:
        return None
    if (model.template is None) != (engine == CTRANSLATE2):
        return "the model is no encoder-decoder" if engine == CTRANSLATE2 else "the model is no decoder-only one"
    if settings.dtype not in ("float32", "int8"):
        return f"BATCH_ASSETS_DTYPE is {settings.dtype}"
    if goes_to_gpu(settings):
        return "the model goes to a GPU"
    if not is_installed(engine):
        return "it is not installed (pip install 'batch_assets[openvino]')"
    return None


def _artifact(engine: str, settings: Settings) -> str:
    # A later version of the package may read another format.
    return f"engines/{engine}-{importlib.metadata.version(_CONVERTERS[engine][0])}-{settings.dtype}"


def _uri(client: Any, run_id: str | None, engine: str, settings: Settings) -> str | None:
    """Address of a conversion that is complete, None if there is none."""
    kept = _artifact(engine, settings)
    if run_id is None or f"{kept}/{CONVERSION_FILE}" not in [file.path for file in client.list_artifacts(run_id, kept)]:
        return None
    # Not runs:/, from where MLflow copies even what is on this machine.
    return f"{client.get_run(run_id).info.artifact_uri}/{kept}"


def _read(uri: str) -> Conversion:
    import mlflow

    return Conversion.parse(mlflow.artifacts.load_text(f"{uri}/{CONVERSION_FILE}"))


def _fetch(uri: str) -> str:
    import mlflow

    return str(Path(mlflow.artifacts.download_artifacts(artifact_uri=uri)).resolve())


def _figures(engine: str, settings: Settings, conversion: Conversion) -> dict[str, float]:
    name = f"{engine}_{settings.dtype}"
    return {
        f"{name}_equal": conversion.equal / conversion.compared,
        f"{name}_rouge1_difference": conversion.rouge1_difference,
    }


def _compare(
    model: ScoringModel, conversion: Conversion, documents: Sequence[Document], expected: list[str], rouge1: float
) -> Conversion:
    """Score the documents that the reference has scored, and set the two side by side."""
    generations = generate(load_engine(model, os.cpu_count() or 1), [item.document or "" for item in documents])
    summaries = [generation.text or "" for generation in generations]
    rouge = mean_rouge([(item.summary or "", summary) for item, summary in zip(documents, summaries, strict=True)])
    return replace(
        conversion,
        compared=len(summaries),
        equal=sum(sha256(summary) == digest for summary, digest in zip(summaries, expected, strict=True)),
        rouge1_difference=rouge["rouge1"] - rouge1,
    )
