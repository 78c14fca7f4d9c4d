"""The reference engine: transformers, in batches of documents of like length.

Documents go through the same preprocessing as in the pipeline that MLflow logged, so that the text is
what ``mlflow.pyfunc`` predicts for that document alone.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batch_assets.inference.contract import Generation, ScoringModel
from batch_assets.inference.quiet import quiet_transformers

# Padded input tokens of one batch. On two cores, batches of 8 and of 24 documents of 300 tokens were
# equally fast (1.2 and 1.0 documents a second), so this keeps memory low and progress smooth.
_BATCH_TOKENS = 4096
# Tokenizers without a limit say 10^30.
_NO_LIMIT = 10**9


@dataclass(frozen=True)
class _Input:
    place: int
    ids: list[int]
    truncated: bool
    document: str


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
        self._longest_input = self._input_limit()
        end = self._pipeline.generation_config.eos_token_id
        self._end_ids = set(end if isinstance(end, list) else [end])

    def generate(self, documents: Sequence[str]) -> list[Generation]:
        """Write one text for each document, in the same order; an error stays with its row."""
        results: list[Generation | None] = [None] * len(documents)
        inputs = []
        for place, document in enumerate(documents):
            try:
                inputs.append(self._encode(place, document))
            except Exception as error:  # whatever a tokenizer makes of a text, the other rows go on
                results[place] = _failed(error)
        for batch in self._batches(inputs):
            for item, generation in zip(batch, self._generate_or_split(batch), strict=True):
                results[item.place] = generation
        return [result for result in results if result is not None]

    def _input_limit(self) -> int:
        """Tokens of input that the model takes."""
        config = self._pipeline.model.config
        limits = [self._tokenizer.model_max_length]
        if self._decoder_only:
            limits.append(getattr(config, "max_position_embeddings", None) or _NO_LIMIT)
        limit = min(limits)
        if self._decoder_only and limit < _NO_LIMIT:
            limit -= int(self._model.parameters.get("max_new_tokens") or 0)
        return int(limit)

    def _encode(self, place: int, document: str) -> _Input:
        if not self._decoder_only:
            text = (self._pipeline.prefix or "") + document
            ids = self._tokenizer(text).input_ids
            if len(ids) <= self._longest_input:
                return _Input(place, ids, False, document)
            return _Input(place, self._tokenizer(text, truncation=True).input_ids, True, document)
        ids = self._tokenizer(self._model.render(document)).input_ids
        truncated = len(ids) > self._longest_input
        while len(ids) > self._longest_input:
            # The document is cut, never the instructions and the markup around it.
            offsets = self._tokenizer(document, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            keep = max(len(offsets) - (len(ids) - self._longest_input), 0)
            if not offsets:
                raise ValueError(f"the prompt alone is longer than the {self._longest_input} tokens the model takes")
            document = document[: offsets[keep][0]]
            ids = self._tokenizer(self._model.render(document)).input_ids
        return _Input(place, ids, truncated, document)

    def _batches(self, inputs: list[_Input]) -> Iterator[list[_Input]]:
        if self._forward.get("do_sample"):
            yield from ([item] for item in inputs)
            return
        batch: list[_Input] = []
        for item in sorted(inputs, key=lambda item: len(item.ids)):
            if batch and len(item.ids) * (len(batch) + 1) > _BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(item)
        if batch:
            yield batch

    def _generate_or_split(self, batch: list[_Input]) -> list[Generation]:
        """Generate; when that fails, halve the batch until the bad row stands alone."""
        try:
            return self._generate(batch)
        except Exception as error:  # the row that causes it is found and gets the message
            if len(batch) == 1:
                return [_failed(error)]
        middle = len(batch) // 2
        return self._generate_or_split(batch[:middle]) + self._generate_or_split(batch[middle:])

    def _generate(self, batch: list[_Input]) -> list[Generation]:
        padded = self._tokenizer.pad({"input_ids": [item.ids for item in batch]}, return_tensors="pt")
        padded = padded.to(self._pipeline.model.device)
        if self._forward.get("do_sample"):
            # One seed a row, so that neither order nor partitioning changes what is drawn.
            request = self._model.request_hash(batch[0].document)
            seed = hashlib.sha256(f"{self._model.seed}\0{request}".encode()).digest()[:8]
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
        return [self._decode(item, ids) for item, ids in zip(batch, output[:, start:].tolist(), strict=True)]

    def _decode(self, item: _Input, ids: list[int]) -> Generation:
        end = next((place for place, token in enumerate(ids) if token in self._end_ids), None)
        text = self._tokenizer.decode(
            ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=self._decoder_only
        )
        return Generation(
            text=text,
            finish_reason="length" if end is None else "stop",
            input_tokens=len(item.ids),
            output_tokens=len(ids) if end is None else end,
            input_truncated=item.truncated,
        )


def _failed(error: Exception) -> Generation:
    return Generation(text=None, error_message=f"{type(error).__name__}: {error}"[:1000])
