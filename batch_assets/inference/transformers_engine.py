"""The reference engine: transformers, in batches of documents of like length.

Documents go through the same preprocessing as in the pipeline that MLflow logged, so that the text is
what ``mlflow.pyfunc`` predicts for that document alone.
"""

import hashlib
from collections.abc import Iterator, Sequence

from batch_assets.inference.contract import Generation, ScoringModel
from batch_assets.inference.encoding import Encoded, Encoding, generate_each, input_limit
from batch_assets.inference.quiet import quiet_transformers

# Padded input tokens of one batch. On two cores, batches of 8 and of 24 documents of 300 tokens were
# equally fast (1.2 and 1.0 documents a second), so this keeps memory low and progress smooth.
_BATCH_TOKENS = 4096


class TransformersEngine:
    """Loads one registered version and generates on CPU or GPU.

    Args:
        model: the version.
        threads: CPU threads to use.
    """

    def __init__(self, model: ScoringModel, threads: int) -> None:
        import mlflow.transformers
        import torch

        quiet_transformers()
        torch.set_num_threads(threads)
        device: int | str | None = None if model.device_map == "auto" else model.device_map
        if device is None and torch.cuda.is_available():
            device = 0
        self._pipeline = mlflow.transformers.load_model(
            model.path, return_type="pipeline", device=device, torch_dtype=getattr(torch, model.dtype)
        )
        self._model = model
        self._torch = torch
        self._tokenizer = self._pipeline.tokenizer
        self._decoder_only = self._pipeline.task == "text-generation"
        if self._decoder_only:
            self._tokenizer.padding_side = "left"
        _, self._forward, _ = self._pipeline._sanitize_parameters(**model.parameters)
        end = self._pipeline.generation_config.eos_token_id
        self._encoding = Encoding(
            model,
            self._tokenizer,
            prefix=getattr(self._pipeline, "prefix", None) or "",
            longest_input=input_limit(self._tokenizer, self._pipeline.model.config, model),
            end_ids=end if isinstance(end, list) else [end],
        )

    def generate(self, documents: Sequence[str]) -> list[Generation]:
        """Write one text for each document, in the same order; an error stays with its row."""
        return generate_each(documents, self._encoding, self._batches, self._generate)

    def _batches(self, requests: list[Encoded]) -> Iterator[list[Encoded]]:
        if self._forward.get("do_sample"):
            yield from ([request] for request in requests)
            return
        batch: list[Encoded] = []
        for request in sorted(requests, key=lambda request: len(request.ids)):
            if batch and len(request.ids) * (len(batch) + 1) > _BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(request)
        if batch:
            yield batch

    def _generate(self, batch: list[Encoded]) -> list[Generation]:
        padded = self._tokenizer.pad({"input_ids": [request.ids for request in batch]}, return_tensors="pt")
        padded = padded.to(self._pipeline.model.device)
        if self._forward.get("do_sample"):
            # One seed a row, so that neither order nor partitioning changes what is drawn.
            request_hash = self._model.request_hash(batch[0].document)
            seed = hashlib.sha256(f"{self._model.seed}\0{request_hash}".encode()).digest()[:8]
            self._torch.manual_seed(int.from_bytes(seed, "big") >> 1)
        with self._torch.inference_mode():
            output = self._pipeline.model.generate(
                input_ids=padded.input_ids,
                attention_mask=padded.attention_mask,
                generation_config=self._pipeline.generation_config,
                **self._forward,
            )
        # What comes first is the prompt, or the one token that starts a decoder.
        start = padded.input_ids.shape[1] if self._decoder_only else 1
        answers = output[:, start:].tolist()
        return [self._encoding.decode(request, ids) for request, ids in zip(batch, answers, strict=True)]
