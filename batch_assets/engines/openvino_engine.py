"""The engine for decoder-only models on CPU: OpenVINO GenAI with continuous batching.

Optimum Intel converts the models: https://huggingface.co/docs/optimum-intel/openvino/export
"""

import importlib.util
import logging
import tempfile
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from batch_assets.engines.contract import Completion, ScoringModel
from batch_assets.engines.conversion import TOKENIZER_FILE, Conversion
from batch_assets.engines.encoding import Encoded, encode_each, failed, input_limit, standalone_tokenizer
from batch_assets.engines.spec import EngineSpec
from batch_assets.engines.transformers_engine import end_ids, load_logged

# Generation settings that the conversion carries over, or that don't change greedy output.
_KNOWN_SETTINGS = {
    "bos_token_id", "do_sample", "eos_token_id", "max_length", "max_new_tokens", "min_length", "min_new_tokens",
    "pad_token_id", "temperature", "top_k", "top_p", "transformers_version", "use_cache",
}  # fmt: skip


# By default, OpenVINO computes in bfloat16 if the processor can, keeps attention's keys and values in 8 bits, and
# quantizes the inputs of 8-bit weights. That is faster, but a row's text then changes with the rows next to it: 24 of
# 40 summaries differed between a batch of 40 and one at a time. With these settings, none did.
# https://docs.openvino.ai/2026/openvino-workflow-generative/inference-with-genai.html
_PRECISION = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


class OpenVINOEngine:
    """Runs the converted model of one registered version.

    Args:
        model: the version; ``engine_path`` is the folder of the converted model.
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
        scheduler.cache_size = 0  # grows with the requests in flight
        scheduler.enable_prefix_caching = False
        properties = {
            **_PRECISION,
            "INFERENCE_NUM_THREADS": self._threads,
            # With pinned threads, all workers would use the first cores.
            "ENABLE_CPU_PINNING": False,
        }
        return openvino_genai.ContinuousBatchingPipeline(self._model.engine_path, scheduler, "CPU", properties)

    def stream(self, documents: Sequence[str], batch_tokens: int | None = None) -> Iterator[tuple[int, Completion]]:
        """Generate one text for each document. An error affects only its row."""
        budget = self._model.batch_tokens if batch_tokens is None else batch_tokens
        requests: list[Encoded] = []
        yield from encode_each(documents, self._encoding, requests)
        yield from self._run(sorted(requests, key=lambda request: len(request.ids)), budget)

    def _run(self, requests: list[Encoded], budget: int) -> Iterator[tuple[int, Completion]]:
        """Keep requests in flight up to a token budget. A new one starts as soon as another ends."""
        waiting = deque(requests)
        in_flight: dict[int, tuple[Encoded, Any]] = {}
        tokens = 0
        while waiting or in_flight:
            try:
                while waiting and (not in_flight or tokens + len(waiting[0].ids) <= budget):
                    request = waiting.popleft()
                    in_flight[request.place] = (request, None)  # counts as lost if it fails to start
                    in_flight[request.place] = (request, self._start(request))
                    tokens += len(request.ids)
                self._pipeline.step()
            except Exception as error:  # one bad request must not stop the other rows
                # Requests in flight are lost with the pipeline. Each is retried alone, and the cause gets the error.
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
                        completion = self._read(request, handle)
                    except Exception as error:  # as above
                        completion = failed(error)
                    yield request.place, completion

    def _start(self, request: Encoded) -> Any:
        import numpy as np
        import openvino

        ids = openvino.Tensor(np.array([request.ids], dtype=np.int64))
        return self._pipeline.add_request(request.place, ids, self._generation)

    @property
    def _running(self) -> Any:
        from openvino_genai import GenerationStatus

        return GenerationStatus.RUNNING

    def _read(self, request: Encoded, handle: Any) -> Completion:
        outputs = handle.read_all()
        if not outputs:
            return failed(RuntimeError(f"OpenVINO ended the request with the status {handle.get_status().name}"))
        return self._encoding.decode(request, outputs[0].generated_ids)


def convert(model: ScoringModel, folder: Path) -> Conversion:
    """Convert a model into a folder. If it can't give the reference's output, return only the reason."""
    import transformers

    if importlib.util.find_spec("optimum.intel") is None:
        return Conversion(refusal="Optimum Intel, which converts models, is not installed")
    pipeline, wanted = load_logged(model)
    defaults = transformers.GenerationConfig().to_dict()
    changed = {key for key, value in wanted.to_dict().items() if value != defaults.get(key) and not key.startswith("_")}
    unknown = sorted(changed - _KNOWN_SETTINGS)
    if unknown:
        return Conversion(refusal=f"its generation configuration sets {', '.join(unknown)}")
    longest = wanted.max_new_tokens
    if not longest:
        return Conversion(refusal="its generation configuration doesn't set max_new_tokens")
    with tempfile.TemporaryDirectory() as checkpoint:
        pipeline.model.save_pretrained(checkpoint)
        refusal = _export(checkpoint, folder, model.dtype == "int8")
    if refusal is not None:
        return Conversion(refusal=refusal)
    standalone_tokenizer(pipeline.tokenizer, False).save(str(folder / TOKENIZER_FILE))
    return Conversion(
        longest_input=input_limit(pipeline.tokenizer, pipeline.model.config, model.template, longest),
        end_ids=end_ids(wanted),
        decoding={"max_new_tokens": longest, "min_new_tokens": wanted.min_new_tokens or 0},
    )


def _export(checkpoint: str, folder: Path, load_in_8bit: bool) -> str | None:
    """Write OpenVINO's files. Returns why the model can't be exported, None on success."""
    # NNCF prints tables of what it compresses; Optimum looks up local folders on the hub.
    for name in ("nncf", "optimum"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from optimum.intel import OVModelForCausalLM

    try:
        with warnings.catch_warnings():
            # Tracing warns about every branch in the model's code.
            warnings.simplefilter("ignore")
            exported = OVModelForCausalLM.from_pretrained(
                checkpoint, export=True, compile=False, load_in_8bit=load_in_8bit, trust_remote_code=False
            )
    except ValueError as error:  # an unknown architecture
        return str(error).splitlines()[0]
    exported.save_pretrained(folder)
    return None


def _refuses(model: ScoringModel) -> str | None:
    return "the model is not decoder-only" if model.template is None else None


SPEC = EngineSpec(
    "openvino",
    package="openvino-genai",
    load=OpenVINOEngine,
    refuses=_refuses,
    convert=convert,
    auto_order=2,
    extra="openvino",
)
