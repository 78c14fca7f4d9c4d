"""Which engine scores with a version, and what is converted for it and kept with the version's run."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.inference.conversion import CTranslate2Conversion
from batch_assets.inference.quiet import quiet_transformers
from batch_assets.settings import Settings

TRANSFORMERS, CTRANSLATE2 = "transformers", "ctranslate2"

_NAMED = "named by BATCH_ASSETS_ENGINE"

# Settings of a generation that the conversion carries over, or that don't change what is written.
_KNOWN_SETTINGS = {
    "bos_token_id", "decoder_start_token_id", "do_sample", "early_stopping", "eos_token_id", "length_penalty",
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "no_repeat_ngram_size", "num_beams",
    "pad_token_id", "renormalize_logits", "transformers_version", "use_cache",
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """An engine, why it is that one, and the folder of what was converted for it."""

    engine: str
    reason: str
    path: str = ""


def prepare(
    client: Any,
    run_id: str,
    model_folder: Path,
    parameters: Mapping[str, Any],
    is_encoder_decoder: bool,
    settings: Settings,
    report: Callable[[str], None],
) -> None:
    """Convert a model for CTranslate2 and keep the result with its run, unless it is there or would not be used.

    Args:
        client: MLflow client.
        run_id: run that the model was logged in.
        model_folder: the MLflow model.
        parameters: generation parameters that were logged with it.
        is_encoder_decoder: whether it is one.
        settings: name the engine.
        report: takes lines on what happens.
    """
    if settings.engine == TRANSFORMERS or _refusal(parameters, is_encoder_decoder, settings) is not None:
        return
    if client.list_artifacts(run_id, _artifact()):
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / CTRANSLATE2
        folder.mkdir()
        conversion = _convert(model_folder, parameters, folder)
        conversion.write(folder)
        client.log_artifacts(run_id, str(folder), _artifact())
    report(f"CTranslate2 can't be used: {conversion.refusal}" if conversion.refusal else "converted for CTranslate2")


def choose(
    client: Any, run_id: str | None, parameters: Mapping[str, Any], is_encoder_decoder: bool, settings: Settings
) -> Choice:
    """The engine that settings name, or for ``auto`` the fastest that gives the reference's output.

    Raises:
        BatchAssetsError: the engine that is named can't run this model.
    """
    if settings.engine == TRANSFORMERS:
        return Choice(TRANSFORMERS, _NAMED)
    refusal = _refusal(parameters, is_encoder_decoder, settings)
    folder = _fetch(client, run_id) if refusal is None else None
    if folder is not None:
        refusal = CTranslate2Conversion.read(folder).refusal
    elif refusal is None:
        refusal = "it was not converted: materialize champion_model"
    if refusal is None:
        why = _NAMED if settings.engine == CTRANSLATE2 else "the fastest with the reference's output"
        return Choice(CTRANSLATE2, why, str(folder))
    if settings.engine == CTRANSLATE2:
        raise BatchAssetsError(f"BATCH_ASSETS_ENGINE={CTRANSLATE2} can't be used for this model: {refusal}")
    return Choice(TRANSFORMERS, f"the reference; not {CTRANSLATE2}: {refusal}")


def _refusal(parameters: Mapping[str, Any], is_encoder_decoder: bool, settings: Settings) -> str | None:
    """Why CTranslate2 is out of the question, whatever it would write."""
    import torch

    if not is_encoder_decoder:
        return "the model is no encoder-decoder"
    if parameters.get("do_sample"):
        return "it samples, which only the reference repeats row by row"
    if settings.dtype != "float32":
        return f"BATCH_ASSETS_DTYPE is {settings.dtype}"
    if settings.device_map not in ("auto", "cpu") or (settings.device_map == "auto" and torch.cuda.is_available()):
        return "the model goes to a GPU"
    return None


def _artifact() -> str:
    import ctranslate2

    # A later version may read another format.
    return f"engines/{CTRANSLATE2}-{ctranslate2.__version__}-float32"


def _fetch(client: Any, run_id: str | None) -> Path | None:
    import mlflow

    if run_id is None or not client.list_artifacts(run_id, _artifact()):
        return None
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=_artifact())).resolve()


def _convert(model_folder: Path, parameters: Mapping[str, Any], folder: Path) -> CTranslate2Conversion:
    """Convert into a folder; a conversion that can't give the reference's output only says why."""
    import ctranslate2
    import mlflow.transformers

    quiet_transformers()
    pipeline = mlflow.transformers.load_model(str(model_folder), return_type="pipeline")
    _, forward, _ = pipeline._sanitize_parameters(**parameters)
    wanted, _ = pipeline.model._prepare_generation_config(pipeline.generation_config, **forward)
    refusal = generation_difference(wanted)
    if refusal is not None:
        return CTranslate2Conversion(refusal=refusal)
    with tempfile.TemporaryDirectory() as checkpoint:
        pipeline.model.save_pretrained(checkpoint)
        pipeline.tokenizer.save_pretrained(checkpoint)
        try:
            ctranslate2.converters.TransformersConverter(checkpoint).convert(str(folder), force=True)
        except ValueError as error:
            return CTranslate2Conversion(refusal=str(error).splitlines()[0])
    # transformers counts the token that a decoder starts with, CTranslate2 doesn't.
    longest = wanted.max_new_tokens or wanted.max_length - 1
    shortest = wanted.min_new_tokens or max((wanted.min_length or 0) - 1, 0)
    return CTranslate2Conversion(
        prefix=pipeline.prefix or "",
        decoding={
            "beam_size": wanted.num_beams,
            "length_penalty": wanted.length_penalty,
            "no_repeat_ngram_size": wanted.no_repeat_ngram_size or 0,
            "min_decoding_length": shortest,
            "max_decoding_length": longest,
        },
    )


def generation_difference(wanted: Any) -> str | None:
    """Why CTranslate2 would write something else than transformers with a generation configuration."""
    import transformers

    plain = transformers.GenerationConfig().to_dict()
    other = {key for key, value in wanted.to_dict().items() if value != plain.get(key) and not key.startswith("_")}
    unknown = sorted(other - _KNOWN_SETTINGS)
    if unknown:
        return f"its generation sets {', '.join(unknown)}"
    if wanted.do_sample:
        return "it samples"
    if wanted.num_beams == 1:
        return None
    if wanted.early_stopping is not True:
        return "its beam search goes on after enough hypotheses have ended (early_stopping is not true)"
    bans = (wanted.min_length or 0) > 1 or wanted.min_new_tokens or wanted.no_repeat_ngram_size
    # CTranslate2 normalizes scores after tokens were banned; transformers does so only if told.
    if bans and not wanted.renormalize_logits:
        return "its beam search bans tokens without normalizing the other scores (renormalize_logits is not true)"
    return None
