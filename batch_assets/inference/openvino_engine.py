"""The engine for decoder-only models on CPU: OpenVINO GenAI with continuous batching."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from batch_assets.inference.contract import Generation, ScoringModel
from batch_assets.inference.conversion import TOKENIZER_FILE, Conversion
from batch_assets.inference.encoding import Encoded, by_tokens, generate_each

# Left alone, OpenVINO computes in bfloat16 where the processor can, keeps attention's keys and values in 8 bits, and
# quantizes what goes into 8-bit weights: faster, but then a row's text changes with the rows beside it (24 of 40
# summaries differed between a batch of 40 and one at a time; as it is here, none).
# https://docs.openvino.ai/2026/openvino-workflow-generative/inference-with-genai.html
_PRECISION = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


class OpenVINOEngine:
    """Loads the conversion of one registered version.

    Args:
        model: the version; ``engine_path`` is the folder of its conversion.
        threads: CPU threads to use.
    """

    def __init__(self, model: ScoringModel, threads: int) -> None:
        import openvino_genai

        folder = Path(model.engine_path)
        self._batch_tokens = model.batch_tokens
        conversion = Conversion.read(folder)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 0  # as much as the requests in flight take
        scheduler.enable_prefix_caching = False
        properties = {
            **_PRECISION,
            "INFERENCE_NUM_THREADS": threads,
            # Workers that pin their threads would all take the first cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
        self._generation = openvino_genai.GenerationConfig(
            do_sample=False, stop_token_ids=set(conversion.end_ids), **conversion.decoding
        )
        self._encoding = conversion.encoding(model, Tokenizer.from_file(str(folder / TOKENIZER_FILE)))

    def generate(self, documents: Sequence[str], batch_tokens: int | None = None) -> list[Generation]:
        """Write one text for each document, in the same order; an error stays with its row."""
        budget = self._batch_tokens if batch_tokens is None else batch_tokens
        return generate_each(documents, self._encoding, lambda requests: by_tokens(requests, budget), self._generate)

    def _generate(self, batch: list[Encoded]) -> list[Generation]:
        import numpy as np
        import openvino

        inputs = [openvino.Tensor(np.array([request.ids], dtype=np.int64)) for request in batch]
        results = self._pipeline.generate(inputs, [self._generation] * len(batch))
        return [
            self._encoding.decode(request, result.m_generation_ids[0])
            for request, result in zip(batch, results, strict=True)
        ]
