"""Writers, upkeep and readers of a Delta table, each in its own process, so that tests can kill and race them.

A partition is whole if all its rows are of one generation and none is missing or extra.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from batch_assets.lake.staging import TableWriter
from batch_assets.lake.upkeep import maintain
from batch_assets.lake.writable_table import ConcurrentCommitError, WritableTable, create_table

SCHEMA = pa.schema([("part", pa.string()), ("generation", pa.string()), ("number", pa.int64())])
ROWS = 60
FILES = 3

CRASHES = ("in the middle of a task", "before the commit", "with an unclear outcome", "after the commit")

# Forked from a server that has done the imports, which saves two seconds per process.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([__name__])


def make_table(uri: str) -> None:
    create_table(uri, {}, SCHEMA, ["part"])


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def replace(uri: str, part: str, generation: str, crash: str | None = None, rows: int = ROWS) -> int:
    """Replace a partition with rows of one generation in several files, and die on the way if requested."""
    table = WritableTable.open(uri)
    staged = []
    for number in range(FILES if rows else 0):
        writer = TableWriter(table.staging_area({"part": part}))
        numbers = range(number, rows, FILES)
        writer.write(pa.table({"generation": [generation] * len(numbers), "number": numbers}))
        if crash == "in the middle of a task" and number == 1:
            for file in writer._open.values():
                file.flush()
            kill_this_process()
        staged += writer.close()
    if crash == "before the commit":
        kill_this_process()
    if crash == "with an unclear outcome":
        commit = DeltaTable.create_write_transaction

        def commit_and_die(*arguments: Any, **options: Any) -> None:
            commit(*arguments, **options)
            kill_this_process()

        DeltaTable.create_write_transaction = commit_and_die  # type: ignore[method-assign]
    version = table.replace({"part": part}, staged, {"run_id": generation})
    if crash == "after the commit":
        kill_this_process()
    return version


def whole(uri: str, part: str, rows: int = ROWS) -> str | None:
    """The generation of a partition as read by deltalake, or None if it is empty. Fails if it is not whole."""
    found = DeltaTable(uri).to_pyarrow_table(filters=[("part", "=", part)])
    generations = set(found["generation"].to_pylist())
    numbers = sorted(found["number"].to_pylist())
    assert len(generations) <= 1, f"{part} is a mix of {generations}"
    assert numbers == (list(range(rows)) if generations else []), f"{part} has {len(numbers)} rows"
    return next(iter(generations), None)


def run(work: Callable[..., Any], *arguments: Any) -> int:
    """Do some work in its own process and return the exit status."""
    process = processes.Process(target=_work_here, args=(dict(os.environ), work, *arguments))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def race(contenders: list[tuple[Any, ...]], context: Any = processes) -> list[Any]:
    """Start functions at the same moment in separate processes, and return what each returned or raised."""
    barrier, results = context.Barrier(len(contenders)), context.Queue()
    started = [
        context.Process(target=_contend, args=(index, barrier, results, dict(os.environ), *contender))
        for index, contender in enumerate(contenders)
    ]
    for process in started:
        process.start()
    found = dict(results.get(timeout=300) for _ in started)
    for process in started:
        process.join(60)
    return [found[index] for index in range(len(contenders))]


def _work_here(environment: dict[str, str], work: Callable[..., Any], *arguments: Any) -> Any:
    """Work with the test's environment variables instead of those that the server started with."""
    os.environ.clear()
    os.environ.update(environment)
    return work(*arguments)


def _contend(index: int, barrier: Any, results: Any, *work: Any) -> None:
    barrier.wait(60)
    try:
        results.put((index, _work_here(*work)))
    except Exception as error:  # returned to the test, which checks it
        results.put((index, error))


def replace_again_and_again(uri: str, part: str, rounds: int) -> int:
    """Replace a partition this many times, retrying when another commit came first. Returns the number of retries."""
    overtaken = 0
    for number in range(rounds):
        while True:
            try:
                replace(uri, part, f"{part}-{number}")
                break
            except ConcurrentCommitError:
                overtaken += 1
    return overtaken


def keep_up_until(uri: str, done: str, hours: int) -> int:
    """Run upkeep until a file exists, and return the number of files it compacted."""
    compacted = 0
    while not Path(done).exists():
        compacted += maintain(WritableTable.open(uri), hours, lambda line: None).compacted
    return compacted


def foreign_compaction_until(uri: str, done: str) -> int:
    """Run delta-rs's own compaction until a file exists, and return the number of files it removed."""
    removed = 0
    while not Path(done).exists():
        try:
            removed += DeltaTable(uri).optimize.compact()["numFilesRemoved"]
        except Exception as error:  # it gives up when another commit came first; any other error is wrong
            assert "oncurrent" in str(error) or "onflict" in str(error) or "commit" in str(error), error
    return removed


def poll_until(uri: str, parts: list[str], done: str) -> int:
    """Read all partitions until a file exists, expecting them to be whole each time. Returns the number of reads."""
    looks = 0
    while not Path(done).exists() or not looks:
        for part in parts:
            whole(uri, part)
        looks += 1
    return looks
