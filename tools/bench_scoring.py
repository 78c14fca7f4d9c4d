"""Benchmark the scoring stage against ``mlflow.pyfunc.spark_udf`` and the bare engine, in documents per second.

Run it with ``make bench``, or one part with ``python -m tools.bench_scoring t5|smollm2|growth|executors|gpu [runs]``.

Each result is the median of three runs in new Spark sessions. It includes loading the model, but not starting Spark.
``spark_udf`` gets fewer rows, because it scores one at a time; two sizes show that its cost per row is constant.

The T5 has the shape of t5-small (https://huggingface.co/google-t5/t5-small) and random weights, which is enough to
measure speed: 512 tokens in, 40 forced tokens out, 4 beams, no repeated trigrams.
"""

import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import dagster as dg
import pyarrow as pa

from batch_assets.engines.catalog import load_engine
from batch_assets.engines.contract import Completion, Engine, ScoringModel, generate
from batch_assets.engines.conversion import TOKENIZER_FILE, Conversion
from batch_assets.engines.transformers_engine import TransformersEngine, load_logged
from batch_assets.graph.batch_execution import BatchOutcome, each_batch
from batch_assets.lake.contracts import BATCH_INFERENCE, PROD_DATA
from batch_assets.lake.lake import Lake
from batch_assets.lake.staging import stage
from batch_assets.machine import cores
from batch_assets.models.checkpoint_sources import checkpoint_source
from batch_assets.models.logged import log_checkpoint
from batch_assets.models.registry import RegisteredModel, prepare_engine, scoring_model
from batch_assets.models.tracking import connect
from batch_assets.resources.spark import SparkResource
from batch_assets.scoring.completions import CompletionStore
from batch_assets.scoring.scorer import score_batch
from batch_assets.settings import Settings, load_settings
from batch_assets.sources.aclsum import ACLSumDataset
from tools.spark_cluster import spark_cluster

_INPUT_TOKENS, _OUTPUT_TOKENS, _BEAMS, _VOCABULARY = 512, 40, 4, 32_128
# Documents for the executors to share: half a minute of work for two cores.
_ROWS = 200


ON_THIS_MACHINE = SparkResource(master="local[*,4]")


class Bench:
    """A registered model and documents, in a new lake."""

    def __init__(self, home: Path, runs: int, **values: Any) -> None:
        self.runs = runs
        self.settings = Settings(home=home, **values)
        self.client = connect(self.settings)
        self.lake = Lake(self.settings.lake_uri)
        dataset = ACLSumDataset("test", 25)
        logged = log_checkpoint(
            self.client, self.settings, checkpoint_source(self.settings).load(), dataset, "w1 w2", lambda line: None
        )
        self.version, _ = RegisteredModel.of(self.client, self.settings).register(logged.run, {})

    def model(self, **changes: Any) -> ScoringModel:
        """The version with changed settings, converted if necessary."""
        settings = self.settings.model_copy(update=changes)
        prepare_engine(self.client, self.version, settings, [], lambda line: None)
        return scoring_model(self.client, self.version, settings)

    def land(self, batch: str, texts: list[str]) -> None:
        """Put documents into m4_1_prod_data."""
        snapshot = self.lake.open(PROD_DATA)
        rows = [
            {"id": f"{number:06}", "document": text, "summary": None, "source": "bench", "landed_at": datetime.now(UTC)}
            for number, text in enumerate(texts)
        ]
        table = pa.Table.from_pylist(rows, schema=PROD_DATA.file_schema)
        snapshot.replace(batch, stage([table], snapshot.staging_area(batch)), {})

    def score(
        self,
        name: str,
        model: ScoringModel,
        batch: str,
        *,
        stop: bool = True,
        resource: SparkResource = ON_THIS_MACHINE,
        load: Callable[[ScoringModel, int], Engine] = load_engine,
    ) -> float:
        """Print and return documents per second of the scoring stage; with ``stop``, each run has its own session."""
        seconds, starts, memory = [], [], 0.0
        # A new digest makes it a new model, so each run loads it and scores every document again.
        for _ in range(self.runs):
            fresh = replace(model, digest=uuid.uuid4().hex)
            began = time.monotonic()
            resource.session.range(1).count()
            starts.append(time.monotonic() - began)
            output = self.lake.open(BATCH_INFERENCE)
            store = CompletionStore.of(self.lake, BATCH_INFERENCE, batch, fresh.fingerprint)
            scored = score_batch(
                resource.session, self.lake.open(PROD_DATA), output, batch, fresh, store, {}, lambda line: None, load
            )
            rows = self.lake.open(PROD_DATA).rows(batch)
            assert (scored.scored, scored.counts.errors) == (rows, 0)
            seconds.append(scored.seconds)
            memory = max(memory, scored.workers.mebibytes if scored.workers else 0)
            if stop:
                resource.stop()
        rate = rows / statistics.median(seconds)
        spread = f"{min(seconds):.1f} to {max(seconds):.1f} s"
        workers = f", {memory:.0f} MiB a worker" if memory else ""
        _say(f"{name:<28}{rate:7.2f} documents/s  {rows:5} rows in {spread}; Spark's start {starts[-1]:.1f} s{workers}")
        return rate

    def time(self, name: str, rows: int, work: Callable[[], None]) -> float:
        """Print and return documents per second of work without Spark."""
        seconds = []
        for _ in range(self.runs):
            began = time.monotonic()
            work()
            seconds.append(time.monotonic() - began)
        rate = rows / statistics.median(seconds)
        _say(f"{name:<28}{rate:7.2f} documents/s  {rows:5} rows in {min(seconds):.1f} to {max(seconds):.1f} s")
        return rate


def _share_checkpoints(home: Path) -> None:
    """Use the checkpoints in the configured home, to avoid converting them again."""
    checkpoints = load_settings().home / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    (home / "checkpoints").symlink_to(checkpoints)


def _say(line: str) -> None:
    print(line, flush=True)


def _baseline(bench: Bench, texts: list[str]) -> float:
    """Documents per second of the stock spark_udf: the better of two sizes."""
    stock = bench.model(engine="mlflow")
    rates = []
    for rows in (8, 16):
        bench.land(f"r{rows}", texts[:rows])
        rates.append(bench.score("spark_udf", stock, f"r{rows}"))
    _say(f"  cost of a row at 16 rows against 8: {rates[0] / rates[1]:.2f}")
    return max(rates)


def t5(home: Path, runs: int) -> None:
    """The talk's model: stock spark_udf, CTranslate2 in both precisions, and CTranslate2 without Spark."""
    bench = Bench(home, runs, model=str(_t5_small(home / "t5")), min_length=_FORCED, max_length=_FORCED)
    texts = _documents(512)
    bench.land("r512", texts)
    _say("T5 of t5-small's shape, 512 tokens in, 40 out, 4 beams")
    baseline = _baseline(bench, texts)
    flops = _t5_flops()
    for dtype, wanted in (("float32", 25), ("int8", 35)):
        model = bench.model(engine="ctranslate2", dtype=dtype)
        ours = bench.score(f"ctranslate2 {dtype}", model, "r512")
        bare = bench.time(f"bare ctranslate2 {dtype}", len(texts), lambda model=model: _bare_ctranslate2(model, texts))  # type: ignore[misc]
        _ratios(ours, baseline, wanted, bare, flops)


def smollm2(home: Path, runs: int) -> None:
    """The embedded model: stock spark_udf, the reference, OpenVINO in both precisions, and OpenVINO without Spark."""
    _share_checkpoints(home)
    bench = Bench(home, runs, min_length=60, max_length=60)
    texts = [item.document or "" for item in ACLSumDataset("test", 100).held_out(100)]
    bench.land("r100", texts)
    _say("SmolLM2-135M-Instruct, prompts of 200 tokens, 60 out")
    baseline = _baseline(bench, texts)
    flops = _smollm2_flops(200, 60)
    for engine, dtype, wanted in (("transformers", "float32", 2), ("openvino", "float32", 5), ("openvino", "int8", 5)):
        model = bench.model(engine=engine, dtype=dtype)
        ours = bench.score(f"{engine} {dtype}", model, "r100")
        bare = None
        if engine == "openvino":
            bare = bench.time(f"bare openvino {dtype}", 100, lambda model=model: _bare_openvino(model, texts))  # type: ignore[misc]
        _ratios(ours, baseline, wanted, bare, flops)


def growth(home: Path, runs: int) -> None:
    """The cost of a document at 100, 400 and 1,600 documents."""
    bench = Bench(home, runs, model=str(_t5_small(home / "t5")), min_length=_FORCED, max_length=_FORCED)
    model = bench.model(engine="ctranslate2", dtype="int8")
    texts = _documents(1600)
    _say("Cost of a document, T5 of t5-small's shape, ctranslate2 int8")
    # All sizes use one session and warm it up first, because the first jobs of a session are slow.
    bench.land("warm", texts[:8])
    bench.score("warming up", model, "warm", stop=False)
    rates = []
    for rows in (100, 400, 1600):
        bench.land(f"r{rows}", texts[:rows])
        rates.append(bench.score(f"{rows} documents", model, f"r{rows}", stop=False))
    _say(f"  dearest against cheapest: {max(rates) / min(rates):.2f} (wanted: at most 1.10)")


class Echo:
    """An engine that takes no time, to measure only Spark and Delta."""

    def __init__(self, model: ScoringModel, threads: int) -> None:
        pass

    def stream(self, documents: Sequence[str], batch_tokens: int | None = None) -> Iterator[tuple[int, Completion]]:
        """Yield the beginning of each document."""
        for place, document in enumerate(documents):
            yield place, Completion(document[:200], finish_reason="stop", input_tokens=1, output_tokens=1)


def executors(home: Path, runs: int) -> None:
    """Compare a local standalone cluster of one, two and four single-core executors with one process."""
    bench = Bench(home, runs, model=str(_t5_small(home / "t5")), min_length=_FORCED, max_length=_FORCED)
    model = bench.model(engine="ctranslate2", dtype="int8")
    texts = _documents(_ROWS)
    bench.land("executors", texts)
    _say(f"T5 of t5-small's shape, ctranslate2 int8, {cores()} cores")
    one = bench.time("one process, one thread", _ROWS, lambda: _bare_ctranslate2(model, texts, 1))
    best = bench.time("one process, all cores", _ROWS, lambda: _bare_ctranslate2(model, texts))
    settings = {"spark.driver.host": "127.0.0.1", "spark.ui.enabled": "false", "spark.executor.memory": "1g"}
    rates = {}
    for count in (1, 2, 4):
        with spark_cluster(home / f"cluster-{count}", workers=count, cores=1, memory="1g") as cluster:
            resource = SparkResource(master=cluster.url, config=settings)
            rates[count] = bench.score(f"{count} executors", model, "executors", resource=resource)
            if count == 2:
                empty = bench.score("  an engine of no time", model, "executors", resource=resource, load=Echo)
        _say(f"  {rates[count] / one:.2f} times one thread, {rates[count] / best:.2f} of all cores in one process")
    output = bench.lake.open(BATCH_INFERENCE)
    files = pa.Table.from_batches(list(output.read("executors")))
    delta = bench.time("  Delta: stage and commit", _ROWS, lambda: _replace(bench, files) and None)
    dagster = bench.time("  Dagster: a run of a batch", _ROWS, _empty_run)
    whole = _ROWS / rates[2]
    _say(
        f"  of {whole:.0f} s with two executors: Spark {(_ROWS / empty - _ROWS / delta) / whole:.1%}, "
        f"Delta {_ROWS / delta / whole:.1%}; Dagster adds {_ROWS / dagster / whole:.1%}"
    )


def _replace(bench: Bench, rows: pa.Table) -> int:
    output = bench.lake.open(BATCH_INFERENCE)
    return output.replace("executors", stage([rows], output.staging_area("executors")), {})


def _empty_run() -> None:
    """Run one batch without any work."""

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a"]))
    def nothing(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return each_batch(context, lambda batch: BatchOutcome(1, {}))

    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([nothing], instance=instance, partition_key="a", run_config={"loggers": {"console": {}}})


def gpu(home: Path, runs: int) -> None:
    """Both models on the GPU: the plain pipeline, one document at a time, and the reference engine in large batches."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU here: the CPU"
    count = 512 if device == "cuda" else 4
    _share_checkpoints(home)
    smol = Bench(home, runs, min_length=60, max_length=60)
    abstracts = [item.document or "" for item in ACLSumDataset("test", 100).held_out(100)]
    for title, bench, texts in (
        (
            "T5 of t5-small's shape",
            Bench(home / "t5home", runs, model=str(_t5_small(home / "t5")), min_length=_FORCED, max_length=_FORCED),
            _documents(count),
        ),
        ("SmolLM2-135M-Instruct", smol, (abstracts * 6)[:count]),
    ):
        connect(bench.settings)
        _say(f"{title} on {name}")
        for dtype in ("float32", "bfloat16"):
            model = replace(bench.model(engine="transformers"), dtype=dtype, device_map=device)
            plain, _ = load_logged(model)
            plain.model.to(device=device, dtype=getattr(torch, dtype))
            plain.device = torch.device(device)
            options = dict(model.parameters) | ({} if model.template is None else {"return_full_text": False})
            some = [model.render(text) for text in texts[: 16 if device == "cuda" else 2]]
            one = bench.time(f"pipeline {dtype}", len(some), lambda: [plain(text, **options) for text in some] and None)  # noqa: B023
            engine = TransformersEngine(model, cores())
            for tokens in (4096, 32_768, 131_072) if device == "cuda" else (4096,):
                label = f"{dtype}, {tokens} tokens a batch"
                ours = bench.time(label, len(texts), lambda: generate(engine, texts, tokens) and None)  # noqa: B023
                _say(f"  {ours / one:.1f} times the pipeline")


def _ratios(ours: float, baseline: float, wanted: int, bare: float | None, flops: float) -> None:
    limit = _matrix_product() / flops
    parts = [f"{ours / baseline:.1f} times spark_udf (wanted: {wanted})"]
    if bare is not None:
        parts.append(f"{ours / bare:.2f} of the bare engine (wanted: 0.85)")
    parts.append(f"{ours / limit:.2f} of the arithmetic limit of {limit:.1f} documents/s in float32")
    _say("  " + ", ".join(parts))


_FORCED = _OUTPUT_TOKENS + 1  # transformers counts the token that a decoder starts with


def _documents(count: int) -> list[str]:
    """Documents of 512 tokens, including the prefix and the end token."""
    draw = random.Random(0)
    return [" ".join(f"w{draw.randrange(30_000)}" for _ in range(_INPUT_TOKENS - 2)) for _ in range(count)]


def _t5_small(folder: Path) -> Path:
    """A checkpoint with the shape of t5-small, random weights and a word tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    words = ["<pad>", "</s>", "<unk>", "summarize:", *(f"w{number}" for number in range(_VOCABULARY - 4))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    summarization = {
        "early_stopping": True, "length_penalty": 2.0, "max_length": 200, "min_length": 30, "no_repeat_ngram_size": 3,
        "num_beams": _BEAMS, "prefix": "summarize: ",
    }  # fmt: skip
    config = T5Config(
        vocab_size=_VOCABULARY, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, decoder_start_token_id=0,
        task_specific_params={"summarization": summarization},
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def _bare_ctranslate2(model: ScoringModel, texts: list[str], translators: int = 0) -> None:
    """Score all documents in one process, model load included, with single-threaded translators (0: one per core)."""
    import ctranslate2
    from tokenizers import Tokenizer

    conversion = Conversion.read(Path(model.engine_path))
    tokenizer = Tokenizer.from_file(str(Path(model.engine_path) / TOKENIZER_FILE))
    translator = ctranslate2.Translator(
        model.engine_path, compute_type=model.dtype, inter_threads=translators or cores(), intra_threads=1
    )
    sources = [encoding.tokens for encoding in tokenizer.encode_batch([conversion.prefix + text for text in texts])]
    results = translator.translate_batch(sources, max_batch_size=8, max_input_length=0, **conversion.decoding)
    for result in results:
        tokenizer.decode([tokenizer.token_to_id(token) for token in result.hypotheses[0]])


def _bare_openvino(model: ScoringModel, texts: list[str]) -> None:
    """Score all documents in one process on all cores, model load included."""
    import numpy as np
    import openvino
    import openvino_genai
    from tokenizers import Tokenizer

    conversion = Conversion.read(Path(model.engine_path))
    tokenizer = Tokenizer.from_file(str(Path(model.engine_path) / TOKENIZER_FILE))
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 0
    properties = {
        "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }  # fmt: skip
    pipeline = openvino_genai.ContinuousBatchingPipeline(model.engine_path, scheduler, "CPU", properties)
    generation = openvino_genai.GenerationConfig(
        do_sample=False, stop_token_ids=set(conversion.end_ids), **conversion.decoding
    )
    ids = [encoding.ids for encoding in tokenizer.encode_batch([model.render(text) for text in texts])]
    inputs = [openvino.Tensor(np.array([row], dtype=np.int64)) for row in sorted(ids, key=len)]
    for result in pipeline.generate(inputs, [generation] * len(inputs)):
        tokenizer.decode(list(result.m_generation_ids[0]))


def _matrix_product() -> float:
    """Floating-point operations per second of a large float32 matrix product on all cores."""
    import torch

    torch.set_num_threads(cores())
    size = 2048
    left, right = torch.rand(size, size), torch.rand(size, size)
    seconds = []
    for _ in range(12):
        began = time.monotonic()
        left @ right
        seconds.append(time.monotonic() - began)
    return float(2 * size**3 / statistics.median(seconds[2:]))


def _t5_flops() -> float:
    """Floating-point operations per document: two per weight and token, and the two products of attention."""
    width, inner, layers = 512, 2048, 6
    attention, dense, tokens, steps = 4 * width**2, 2 * width * inner, _INPUT_TOKENS, _OUTPUT_TOKENS * _BEAMS
    encoder = layers * (2 * (attention + dense) * tokens + 4 * tokens**2 * width)
    keys_and_values = layers * 2 * 2 * width**2 * tokens
    per_step = layers * (2 * (attention + attention / 2 + dense) + 4 * tokens * width + 4 * _OUTPUT_TOKENS * width / 2)
    return encoder + keys_and_values + steps * (per_step + 2 * width * _VOCABULARY)


def _smollm2_flops(prompt: int, answer: int) -> float:
    """Floating-point operations per document; sizes from https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct."""
    width, inner, layers, key_width, vocabulary = 576, 1536, 30, 192, 49_152
    weights = layers * (2 * width**2 + 2 * width * key_width + 3 * width * inner)
    tokens = prompt + answer
    return 2 * weights * tokens + layers * 4 * width * tokens**2 / 2 + 2 * width * vocabulary * answer


def main() -> None:
    """Run the named parts, or all that need no GPU."""
    names = [name for name in sys.argv[1:] if not name.isdigit()] or ["t5", "smollm2", "growth", "executors"]
    runs = next((int(name) for name in sys.argv[1:] if name.isdigit()), 3)
    parts: dict[str, Callable[[Path, int], None]] = {
        "t5": t5,
        "smollm2": smollm2,
        "growth": growth,
        "executors": executors,
        "gpu": gpu,
    }
    unknown = [name for name in names if name not in parts]
    if unknown:
        raise click.ClickException(f"there is no part {unknown[0]}; parts are {', '.join(parts)}")
    if len(names) > 1:
        # One process per part, because MLflow uses one store per process, and Spark one session.
        for name in names:
            subprocess.run([sys.executable, "-m", "tools.bench_scoring", name, str(runs)], check=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        parts[names[0]](Path(folder), runs)


if __name__ == "__main__":
    main()
