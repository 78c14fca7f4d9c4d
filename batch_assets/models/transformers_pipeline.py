"""Build the transformers pipeline, the prompt template and the generation parameters of a checkpoint."""

from typing import Any

from batch_assets.engines.quiet import quiet_transformers
from batch_assets.errors import BatchAssetsError
from batch_assets.models.checkpoint import Checkpoint
from batch_assets.settings import Settings
from batch_assets.tasks.configured_task import task_of

# Stands for the document while a chat template is rendered. No tokenizer's template contains it.
_PLACEHOLDER = "\x00document\x00"


def build_pipeline(checkpoint: Checkpoint, settings: Settings) -> Any:
    """Load a checkpoint as the transformers pipeline that fits its architecture.

    Raises:
        BatchAssetsError: the checkpoint can't be loaded, or its tokenizer can't be used.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    quiet_transformers()
    task = checkpoint.pipeline_of(task_of(settings))
    try:
        pipeline = transformers.pipeline(
            task,
            model=str(checkpoint.folder),
            tokenizer=str(checkpoint.folder),
            device_map=settings.device_map,
            dtype=getattr(torch, settings.logged_dtype),
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BatchAssetsError(f"the checkpoint {checkpoint.folder} can't be loaded for {task}: {error}") from error
    if not pipeline.tokenizer.is_fast:
        raise BatchAssetsError(
            f"the tokenizer of {checkpoint.folder} is written in Python ({type(pipeline.tokenizer).__name__}): save "
            "a fast tokenizer (tokenizer.json) there"
        )
    if checkpoint.is_encoder_decoder:
        # The pipeline removes the prefix ("summarize: ") from the configuration that is saved with the model.
        params = (pipeline.model.config.task_specific_params or {}).get(task)
        if params is not None and pipeline.prefix:
            params["prefix"] = pipeline.prefix
    elif pipeline.tokenizer.pad_token_id is None:
        pipeline.tokenizer.pad_token = pipeline.tokenizer.eos_token
    return pipeline


def prompt_template(pipeline: Any, settings: Settings) -> str | None:
    """The template that MLflow puts a document into for a decoder-only model; None for an encoder-decoder.

    Returns:
        A format string with ``{prompt}`` for the document, including any chat markup of the tokenizer.
    """
    if pipeline.task != "text-generation":
        return None
    task = task_of(settings)
    request = (settings.prompt or task.prompt).replace("{document}", _PLACEHOLDER)
    if pipeline.tokenizer.chat_template:
        messages = [{"role": "system", "content": task.system_prompt}, {"role": "user", "content": request}]
        request = pipeline.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        request = f"{request}\n\n{task.cue}"
    return str(request).replace("{", "{{").replace("}", "}}").replace(_PLACEHOLDER, "{prompt}")


def generation_parameters(checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
    """The parameters to log with the model: lengths in tokens, truncation, sampling.

    Settings override the task's lengths (for summaries by an encoder-decoder, 20 to 40 tokens as in the talk).

    Raises:
        BatchAssetsError: the minimum length is above the maximum length.
    """
    task = task_of(settings)
    if checkpoint.is_encoder_decoder:
        longest = settings.max_length or task.lengths[1]
        shortest = min(task.lengths[0], longest) if settings.min_length is None else settings.min_length
        _check_lengths(shortest, longest)
        return {
            "min_length": shortest,
            "max_length": longest,
            # The pipeline's default of 256 new tokens would override max_length.
            "max_new_tokens": None,
            # Beam search compares sums of log probabilities, which min_length and no_repeat_ngram_size would leave
            # unnormalized: https://huggingface.co/docs/transformers/main_classes/text_generation
            "renormalize_logits": True,
            "truncation": True,
            "do_sample": settings.do_sample,
        }
    parameters: dict[str, Any] = {
        "max_new_tokens": settings.max_length or task.new_tokens,
        "do_sample": settings.do_sample,
    }
    _check_lengths(settings.min_length or 0, parameters["max_new_tokens"])
    if settings.min_length:
        parameters["min_new_tokens"] = settings.min_length
    return parameters


def _check_lengths(shortest: int, longest: int) -> None:
    if shortest > longest:
        raise BatchAssetsError(
            f"the minimum length of {shortest} tokens is above the maximum length of {longest}: set both "
            "(BATCH_ASSETS_MIN_LENGTH and _MAX_LENGTH, or model.min_length and model.max_length in a pipeline's file)"
        )
