"""What a Spark worker does with the requests of its task: generate, and write what is finished every few seconds."""

import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from batch_assets.inference.completions import Completion, CompletionStore
from batch_assets.inference.contract import Engine, Generation, ScoringModel
from batch_assets.inference.encoding import texts_of

# From this attempt on (the first is 0) a task goes row by row, and a row that kills the process is found.
CAREFUL_ATTEMPT = 2

REPORT_DDL = "scored long, worker string, loads long, load_seconds double, mebibytes double"

# A worker that is killed loses at most what it finished since its last flush, and what it was at.
_FLUSH_SECONDS = 2.0


@dataclass(frozen=True)
class _Request:
    request_hash: str
    document: str


@dataclass(frozen=True)
class Scoring:
    """What the tasks of one scoring job have in common.

    Args:
        job: its id.
        first_attempt: number that the first attempt of a task goes by.
        model: the version that writes.
        store: where finished completions go.
        threads: CPU threads of a worker.
        gpus: GPUs of this machine to share between tasks by their number; 0 where Spark hands them out, or there are
            none.
        load: makes the engine.
    """

    job: str
    first_attempt: int
    model: ScoringModel
    store: CompletionStore
    threads: int
    gpus: int
    load: Callable[[ScoringModel, int], Engine]

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Score the requests of a task: ``request_hash`` and ``document``.

        Returns:
            One row that tells what was done, as in ``REPORT_DDL``.
        """
        from pyspark import TaskContext

        task = TaskContext.get()
        if task is None:
            raise RuntimeError("not in a Spark task")
        attempt = self.first_attempt + task.attemptNumber()
        # A first attempt gets only what is missing; the ones after it find what their forerunners have written.
        done = self.store.hashes() if attempt else set()
        loads, seconds, scored = 0, 0.0, 0
        for rows in batches:
            texts = texts_of(rows.column("document"))
            hashes = rows.column("request_hash").to_pylist()
            missing = [_Request(key, text or "") for key, text in zip(hashes, texts, strict=True) if key not in done]
            if not missing:
                continue
            began = time.monotonic()
            engine, is_new = self._engine(task)
            if is_new:
                loads, seconds = loads + 1, seconds + time.monotonic() - began
            if attempt < CAREFUL_ATTEMPT:
                self._score(missing, engine, self.model.batch_tokens >> attempt)
            else:
                self._score_carefully(missing, engine)
            scored += len(missing)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        yield pa.RecordBatch.from_pydict(
            {
                "scored": [scored],
                "worker": [f"{os.uname().nodename}/{os.getpid()}"],
                "loads": [loads],
                "load_seconds": [seconds],
                "mebibytes": [peak],
            }
        )

    def _score(self, requests: list[_Request], engine: Engine, batch_tokens: int) -> None:
        finished: list[Completion] = []
        flushed = time.monotonic()
        for place, generation in engine.stream([request.document for request in requests], batch_tokens):
            finished.append(self._completion(requests[place], generation))
            if time.monotonic() - flushed >= _FLUSH_SECONDS:
                self.store.write(finished)
                finished, flushed = [], time.monotonic()
        self.store.write(finished)

    def _score_carefully(self, requests: Sequence[_Request], engine: Engine) -> None:
        """Score row by row; a row that a worker of this job has died over gets an error instead."""
        deadly = self.store.tried(self.job)
        for request in requests:
            if request.request_hash in deadly:
                generation = Generation(text=None, error_message="the worker process died over this document")
                self.store.write([self._completion(request, generation)])
                continue
            with self.store.trying(self.job, request.request_hash):
                for _, generation in engine.stream([request.document], 0):
                    self.store.write([self._completion(request, generation)])

    def _completion(self, request: _Request, generation: Generation) -> Completion:
        return Completion(
            request_hash=request.request_hash,
            text=generation.text,
            error_message=generation.error_message,
            finish_reason=generation.finish_reason,
            input_tokens=generation.input_tokens,
            output_tokens=generation.output_tokens,
            input_truncated=generation.input_truncated,
            model=self.model.name,
            model_version=self.model.version,
            completed_at=datetime.now(UTC),
        )

    def _engine(self, task: Any) -> tuple[Engine, bool]:
        """The engine of this worker process, and whether it was loaded just now; kept for all batches of a run."""
        key = f"{self.model.path} {self.model.engine_path} {self.model.fingerprint} {self.model.device_map}"
        if key in _loaded:
            return _loaded[key], False
        _loaded.clear()
        gpus = task.resources().get("gpu")
        if gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus.addresses)
        elif self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(task.partitionId() % self.gpus)
        _loaded[key] = self.load(self.model, self.threads)
        return _loaded[key], True


_loaded: dict[str, Engine] = {}
