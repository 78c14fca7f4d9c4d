"""Score one Spark task's requests, and write finished completions every few seconds."""

import fcntl
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch_assets.engines.contract import Completion, Engine, ErrorClass, RowError, ScoringModel
from batch_assets.scoring.completions import CompletionStore
from batch_assets.scoring.model_artifacts import Artifact
from batch_assets.text import texts_of

# From this attempt on (the first is 0), a task scores row by row to find a row that kills the process.
CAREFUL_ATTEMPT = 2

REPORT_DDL = "scored long, worker string, loads long, load_seconds double, mebibytes double"

# Stands for the rows of a task that scores many at once, in place of the hash of a request.
MANY_ROWS = "many"

# A row is blamed after this many workers have died while scoring only that row.
_MAX_DEATHS = 2

# A killed worker loses at most what it finished since its last flush, and the batch in progress.
_FLUSH_SECONDS = 2.0


@dataclass(frozen=True)
class _Request:
    request_hash: str
    document: str


@dataclass(frozen=True)
class Scoring:
    """Settings that all tasks of a scoring job share.

    Args:
        job: id of the job.
        first_attempt: number of a task's first attempt.
        model: the version that writes the answers.
        artifacts: folders to fetch first, by the model field that names them; empty if workers see the driver's files.
        store: where finished completions are written.
        threads: CPU threads per worker.
        gpus: GPUs on this machine that workers share; 0 if Spark assigns them, or if there are none.
        gpus_each: GPUs per worker.
        load: creates the engine from a model and a number of threads.
    """

    job: str
    first_attempt: int
    model: ScoringModel
    artifacts: Mapping[str, Artifact]
    store: CompletionStore
    threads: int
    gpus: int
    gpus_each: int
    load: Callable[[ScoringModel, int], Engine]

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Score a task's requests, which have the columns ``request_hash`` and ``document``.

        Yields:
            One row that reports the work done, as in ``REPORT_DDL``.
        """
        from pyspark import TaskContext

        task = TaskContext.get()
        if task is None:
            raise RuntimeError("scoring must run in a Spark task")
        attempt = self.first_attempt + task.attemptNumber()
        # Earlier attempts, and earlier runs of a stage that Spark repeats, may have written some completions.
        done = self.store.hashes()
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
                with self.store.attempting(self.job, task.taskAttemptId(), MANY_ROWS):
                    self._score(missing, engine, self.model.batch_tokens >> attempt)
            else:
                self._score_carefully(missing, engine, task.taskAttemptId())
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
        for place, completion in engine.stream([request.document for request in requests], batch_tokens):
            finished.append(self._with_request(requests[place], completion))
            if time.monotonic() - flushed >= _FLUSH_SECONDS:
                self.store.write(finished)
                finished, flushed = [], time.monotonic()
        self.store.write(finished)

    def _score_carefully(self, requests: Sequence[_Request], engine: Engine, task_attempt: int) -> None:
        """Score row by row. A row that has killed several workers of this job gets an error instead."""
        deaths = self.store.attempts(self.job)
        for request in requests:
            # One death may be a coincidence: Spark kills the workers of all tasks once a task has no attempts left.
            if deaths[request.request_hash] >= _MAX_DEATHS:
                completion = Completion.failed(RowError.WORKER_DIED.value, ErrorClass.DOCUMENT, input_truncated=False)
                self.store.write([self._with_request(request, completion)])
                continue
            with self.store.attempting(self.job, task_attempt, request.request_hash):
                for _, completion in engine.stream([request.document], 0):
                    self.store.write([self._with_request(request, completion)])

    def _with_request(self, request: _Request, completion: Completion) -> Completion:
        return replace(
            self.model.checked(completion),
            request_hash=request.request_hash,
            model=self.model.name,
            model_version=self.model.version,
            completed_at=datetime.now(UTC),
        )

    def _engine(self, task: Any) -> tuple[Engine, bool]:
        """The engine of this process, kept for all batches of a run, and whether it was loaded just now."""
        key = f"{self.model.path} {self.model.engine_path} {self.model.fingerprint} {self.model.device_map}"
        if key in _loaded_engines:
            return _loaded_engines[key], False
        _loaded_engines.clear()
        gpus = task.resources().get("gpu")
        if gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus.addresses)
        elif self.gpus:
            take_gpus(self.gpus, self.gpus_each)
        folders: dict[str, Any] = {name: artifact.fetch() for name, artifact in self.artifacts.items()}
        _loaded_engines[key] = self.load(replace(self.model, **folders), self.threads)
        return _loaded_engines[key], True


def take_gpus(count: int, each: int) -> None:
    """Reserve the first free group of GPUs for the lifetime of this process.

    Args:
        count: number of GPUs on this machine, used if CUDA_VISIBLE_DEVICES is not set.
        each: GPUs per group.
    """
    if _gpu_locks:
        return  # CUDA reads the variable only once
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = named.split(",") if named else [str(number) for number in range(count)]
    groups = [devices[first : first + each] for first in range(0, len(devices) - each + 1, each)]
    for group in groups:
        lock = (Path(tempfile.gettempdir()) / f"batch_assets_gpu_{os.getuid()}_{'_'.join(group)}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _gpu_locks.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(group)
        return
    raise RuntimeError(f"all GPUs on this machine ({', '.join(devices)}) are in use by other workers")


_gpu_locks: list[Any] = []

_loaded_engines: dict[str, Engine] = {}
