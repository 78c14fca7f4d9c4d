"""The reference engine: transformers, in batches of documents of similar length.

Documents get the same preprocessing as in the pipeline that MLflow logged, so the text is the one that
``mlflow.pyfunc`` predicts for the document alone.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from batch_assets.engines.contract import Completion, ScoringModel
from batch_assets.engines.encoding import (
    Encoded,
    Encoding,
    generate_each,
    input_limit,
    standalone_tokenizer,
)
from batch_assets.engines.model_files import check_mlflow_model
from batch_assets.engines.quiet import quiet_transformers
from batch_assets.engines.spec import EngineSpec

# Generation parameters that depend on earlier tokens, including the prompt of a decoder-only model.
_PROMPT_DEPENDENT = ("repetition_penalty", "no_repeat_ngram_size", "min_length")


class TransformersEngine:
    """Loads one registered version and generates on CPU or GPU.

    ``device_map="auto"`` puts the model on the GPUs that the process sees, spread over several if one is too small,
    and on the CPU if there is none.

    Args:
        model: the version.
        threads: CPU threads to use.

    Raises:
        BatchAssetsError: the model could run code, or is not supported.
    """

    def __init__(self, model: ScoringModel, threads: int) -> None:
        import torch
        from mlflow.environment_variables import MLFLOW_HUGGINGFACE_USE_DEVICE_MAP
        from mlflow.transformers import load_model

        quiet_transformers()
        check_mlflow_model(Path(model.path))
        torch.set_num_threads(threads)
        spread = model.device_map == "auto" and torch.cuda.is_available()
        MLFLOW_HUGGINGFACE_USE_DEVICE_MAP.set(spread)
        self._pipeline = load_model(
            model.path,
            return_type="pipeline",
            device=None if model.device_map == "auto" else model.device_map,
            torch_dtype=getattr(torch, model.dtype),
        )
        self._model = model
        self._torch = torch
        self._decoder_only = self._pipeline.task == "text-generation"
        tokenizer = self._pipeline.tokenizer
        if self._decoder_only:
            tokenizer.padding_side = "left"
        _, self._forward, _ = self._pipeline._sanitize_parameters(**model.parameters)
        self._encoding = Encoding(
            model,
            standalone_tokenizer(tokenizer, not self._decoder_only),
            prefix=getattr(self._pipeline, "prefix", None) or "",
            longest_input=input_limit(
                tokenizer, self._pipeline.model.config, model.template, model.parameters.get("max_new_tokens")
            ),
            end_ids=end_ids(self._pipeline.generation_config),
        )

    def stream(self, documents: Sequence[str], batch_tokens: int | None = None) -> Iterator[tuple[int, Completion]]:
        """Generate one text for each document. An error affects only its row."""
        budget = self._model.batch_tokens if batch_tokens is None else batch_tokens
        return generate_each(documents, self._encoding, 0 if self._must_run_alone else budget, self._generate)

    @property
    def _must_run_alone(self) -> bool:
        """Whether each row must be scored alone.

        Sampled rows are seeded one by one. Parameters that depend on the prompt would count its padding too.
        """
        wanted = self._pipeline.generation_config
        values = {name: self._forward.get(name, getattr(wanted, name, None)) for name in _PROMPT_DEPENDENT}
        depends_on_prompt = any(value not in (None, 0, 1.0) for value in values.values())
        return bool(self._forward.get("do_sample")) or (self._decoder_only and depends_on_prompt)

    def _generate(self, batch: list[Encoded]) -> list[Completion]:
        ids = {"input_ids": [request.ids for request in batch]}
        padded = self._pipeline.tokenizer.pad(ids, return_tensors="pt").to(self._pipeline.model.device)
        if self._forward.get("do_sample"):
            # One seed per row, so that order and partitioning don't change the sample.
            request_hash = self._model.request_hash(batch[0].document)
            seed = hashlib.sha256(f"{self._model.seed}\0{request_hash}".encode()).digest()[:8]
            self._torch.manual_seed(int.from_bytes(seed, "big") >> 1)
        try:
            with self._torch.inference_mode():
                output = self._pipeline.model.generate(
                    input_ids=padded.input_ids,
                    attention_mask=padded.attention_mask,
                    generation_config=self._pipeline.generation_config,
                    **self._forward,
                )
        except RuntimeError as error:
            if "CUDA error" in str(error) and not isinstance(error, self._torch.OutOfMemoryError):
                # CUDA is unusable in this process now. Once it dies, scoring row by row finds the cause.
                os._exit(1)
            raise
        # The output begins with the prompt, or with the start token of a decoder.
        start = padded.input_ids.shape[1] if self._decoder_only else 1
        answers = output[:, start:].tolist()
        return [self._encoding.decode(request, ids) for request, ids in zip(batch, answers, strict=True)]


def load_logged(model: ScoringModel) -> tuple[Any, Any]:
    """Load the pipeline of a logged model, and its generation configuration.

    Raises:
        BatchAssetsError: the model could run code, or is not supported.
    """
    import mlflow.transformers

    quiet_transformers()
    check_mlflow_model(Path(model.path))
    pipeline = mlflow.transformers.load_model(model.path, return_type="pipeline")
    _, forward, _ = pipeline._sanitize_parameters(**model.parameters)
    wanted, _ = pipeline.model._prepare_generation_config(pipeline.generation_config, **forward)
    return pipeline, wanted


def end_ids(generation_config: object) -> tuple[int, ...]:
    """Tokens that end an answer, from a generation configuration of transformers."""
    end = getattr(generation_config, "eos_token_id", None)
    return tuple(end) if isinstance(end, list) else () if end is None else (end,)


SPEC = EngineSpec("transformers", package="transformers", load=TransformersEngine, repeats_samples=True)
