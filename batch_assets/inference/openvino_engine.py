"""The engine for decoder-only models on CPU: OpenVINO GenAI with continuous batching."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from batch_assets.inference.contract import Generation, ScoringModel
from batch_assets.inference.conversion import TOKENIZER_FILE, Conversion
from batch_assets.inference.encoding import Encoded, encode_each, failed

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

        self._model, self._threads = model, threads
        folder = Path(model.engine_path)
        conversion = Conversion.read(folder)
        self._generation = openvino_genai.GenerationConfig(
            do_sample=False, stop_token_ids=set(conversion.end_ids), **conversion.decoding
        )
        self._encoding = conversion.encoding(model, Tokenizer.from_file(str(folder / TOKENIZER_FILE)))
        self._pipeline = self._load()

    def _load(self) -> Any:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 0  # as much as the requests in flight take
        scheduler.enable_prefix_caching = False
        properties = {
            **_PRECISION,
            "INFERENCE_NUM_THREADS": self._threads,
            # Workers that pin their threads would all take the first cores.
            "ENABLE_CPU_PINNING": False,
        }
        return openvino_genai.ContinuousBatchingPipeline(self._model.engine_path, scheduler, "CPU", properties)

    def stream(self, documents: Sequence[str], batch_tokens: int | None = None) -> Iterator[tuple[int, Generation]]:
        """Write one text for each document; an error stays with its row."""
        budget = self._model.batch_tokens if batch_tokens is None else batch_tokens
        requests: list[Encoded] = []
        yield from encode_each(documents, self._encoding, requests)
        yield from self._run(sorted(requests, key=lambda request: len(request.ids)), budget)

    def _run(self, requests: list[Encoded], budget: int) -> Iterator[tuple[int, Generation]]:
        """Keep requests in flight up to a number of tokens; a new one starts as soon as another has ended."""
        waiting = deque(requests)
        in_flight: dict[int, tuple[Encoded, Any]] = {}
        tokens = 0
        while waiting or in_flight:
            try:
                while waiting and (not in_flight or tokens + len(waiting[0].ids) <= budget):
                    request = waiting.popleft()
                    in_flight[request.place] = (request, None)  # it counts as lost where it can't even start
                    in_flight[request.place] = (request, self._start(request))
                    tokens += len(request.ids)
                self._pipeline.step()
            except Exception as error:  # whatever a request makes of the pipeline, the other rows go on
                # What was in flight is lost with the pipeline. Each goes alone now, and the cause gets the error.
                lost = [request for request, _ in in_flight.values()]
                in_flight, tokens = {}, 0
                self._pipeline = self._load()
                if len(lost) == 1:
                    yield lost[0].place, failed(error)
                else:
                    yield from self._run(lost, 0)
                continue
            for request, handle in list(in_flight.values()):
                if handle.get_status() != self._running:
                    del in_flight[request.place]
                    tokens -= len(request.ids)
                    try:
                        generation = self._read(request, handle)
                    except Exception as error:  # as above
                        generation = failed(error)
                    yield request.place, generation

    def _start(self, request: Encoded) -> Any:
        import numpy as np
        import openvino

        ids = openvino.Tensor(np.array([request.ids], dtype=np.int64))
        return self._pipeline.add_request(request.place, ids, self._generation)

    @property
    def _running(self) -> Any:
        from openvino_genai import GenerationStatus

        return GenerationStatus.RUNNING

    def _read(self, request: Encoded, handle: Any) -> Generation:
        outputs = handle.read_all()
        if not outputs:
            return failed(RuntimeError(f"OpenVINO ended the request as {handle.get_status().name}"))
        return self._encoding.decode(request, outputs[0].generated_ids)
