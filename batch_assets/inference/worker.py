"""What a Spark worker does with the requests of its task: generate, and write what is finished every few seconds."""

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

from batch_assets.inference.artifacts import Artifact
from batch_assets.inference.completions import Completion, CompletionStore
from batch_assets.inference.contract import Engine, Generation, RowError, ScoringModel
from batch_assets.inference.encoding import texts_of

# From this attempt on (the first is 0) a task goes row by row, and a row that kills the process is found.
CAREFUL_ATTEMPT = 2

REPORT_DDL = "scored long, worker string, loads long, load_seconds double, mebibytes double"

# Workers that die over a row alone before it is taken for the reason.
_DEADLY = 2

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
        artifacts: folders to fetch first, by the field of the model that names them; none where workers see the
            driver's files.
        store: where finished completions go.
        threads: CPU threads of a worker.
        gpus: GPUs of this machine that workers share; 0 where Spark hands them out, or there are none.
        gpus_each: how many of them a worker takes.
        load: makes the engine.
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
        """Score the requests of a task: ``request_hash`` and ``document``.

        Returns:
            One row that tells what was done, as in ``REPORT_DDL``.
        """
        from pyspark import TaskContext

        task = TaskContext.get()
        if task is None:
            raise RuntimeError("not in a Spark task")
        attempt = self.first_attempt + task.attemptNumber()
        # Forerunners of this attempt may have written some of it, also those of a stage that Spark runs again.
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
        for place, generation in engine.stream([request.document for request in requests], batch_tokens):
            finished.append(self._completion(requests[place], generation))
            if time.monotonic() - flushed >= _FLUSH_SECONDS:
                self.store.write(finished)
                finished, flushed = [], time.monotonic()
        self.store.write(finished)

    def _score_carefully(self, requests: Sequence[_Request], engine: Engine, task_attempt: int) -> None:
        """Score row by row; a row that workers of this job have died over gets an error instead."""
        deaths = self.store.tried(self.job)
        for request in requests:
            # Once may have been by chance: Spark kills the workers of all tasks when one of them has failed for good.
            if deaths[request.request_hash] >= _DEADLY:
                generation = Generation(text=None, error_message=RowError.WORKER_DIED.value)
                self.store.write([self._completion(request, generation)])
                continue
            with self.store.trying(self.job, task_attempt, request.request_hash):
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
            take_gpus(self.gpus, self.gpus_each)
        folders: dict[str, Any] = {name: artifact.fetch() for name, artifact in self.artifacts.items()}
        _loaded[key] = self.load(replace(self.model, **folders), self.threads)
        return _loaded[key], True


def take_gpus(count: int, each: int) -> None:
    """Let this process see GPUs that no other worker has: the first group that is free, as long as it lives.

    Args:
        count: GPUs that this machine has, or those that CUDA_VISIBLE_DEVICES names.
        each: GPUs of a group.
    """
    if _taken:
        return  # CUDA sees what it saw first
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
        _taken.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(group)
        return
    raise RuntimeError(f"all GPUs of this machine ({', '.join(devices)}) are taken by other workers")


_taken: list[Any] = []

_loaded: dict[str, Engine] = {}
