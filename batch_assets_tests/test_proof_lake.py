"""The Delta guarantees over many rounds, while Spark drivers and executors are killed: part of `make proof`."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from deltalake import DeltaTable

from batch_assets.lake.upkeep import maintain
from batch_assets.lake.writable_table import ConcurrentCommitError, WritableTable
from batch_assets_tests import delta_processes as writers
from batch_assets_tests.delta_processes import CRASHES, ROWS, processes, race, replace, run, whole
from batch_assets_tests.spark_writer import TASKS
from tools.spark_cluster import spark_cluster

pytestmark = pytest.mark.proof

CRASH_ROUNDS, RACE_ROUNDS, UPKEEP_ROUNDS, DRIVER_KILLS = 25, 25, 300, 8


@pytest.fixture
def uri(tmp_path) -> str:
    writers.make_table(str(tmp_path / "table"))
    return str(tmp_path / "table")


def spark_writer(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "batch_assets_tests.spark_writer", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_repeated_crashes_and_reruns_leave_every_partition_whole(uri, record_property):
    random_crashes = random.Random(2026)
    parts = ["a", "b", "c"]
    for number in range(CRASH_ROUNDS):
        for crash in CRASHES:
            part = random_crashes.choice(parts)
            assert run(replace, uri, part, f"{number}-{crash}", crash) == -signal.SIGKILL
            replace(uri, part, f"{number}-{crash}-again")
            assert whole(uri, part) == f"{number}-{crash}-again"
            for other in parts:
                whole(uri, other)
    assert WritableTable.open(uri).rows() == len(parts) * ROWS
    record_property("kills", CRASH_ROUNDS * len(CRASHES))


def test_races_for_eight_partitions_or_for_one_always_leave_whole_partitions(uri, record_property):
    refused = 0
    for number in range(RACE_ROUNDS):
        parts = [f"p{part}" for part in range(8)]
        results = race([(replace, uri, part, f"{number}-{part}") for part in parts])
        assert not [result for result in results if isinstance(result, Exception)]
        assert [whole(uri, part) for part in parts] == [f"{number}-{part}" for part in parts]
        results = race([(replace, uri, "one", f"{number}-{contender}") for contender in range(4)])
        lost = [result for result in results if not isinstance(result, int)]
        assert all(isinstance(result, ConcurrentCommitError) for result in lost)
        last = max(result for result in results if isinstance(result, int))
        assert whole(uri, "one") == f"{number}-{results.index(last)}"
        refused += len(lost)
    assert refused
    record_property("refused of the four at one partition", f"{refused} in {RACE_ROUNDS} rounds")


def test_hundreds_of_replacements_run_alongside_upkeep_other_compactions_and_readers(uri, tmp_path, record_property):
    parts, done = ["a", "b"], str(tmp_path / "done")
    for part in parts:
        replace(uri, part, "first")
    with processes.Pool(6) as pool:
        beside = [
            pool.apply_async(writers.keep_up_until, (uri, done, 168)),
            pool.apply_async(writers.foreign_compaction_until, (uri, done)),
            pool.apply_async(writers.poll_until, (uri, parts, done)),
            pool.apply_async(writers.poll_until, (uri, parts, done)),
        ]
        writing = [pool.apply_async(writers.replace_again_and_again, (uri, part, UPKEEP_ROUNDS)) for part in parts]
        try:
            overtaken = [result.get(3600) for result in writing]
        finally:
            Path(done).touch()
        compacted, foreign, *looks = [result.get(120) for result in beside]
    assert [whole(uri, part) for part in parts] == [f"{part}-{UPKEEP_ROUNDS - 1}" for part in parts]
    assert WritableTable.open(uri).rows() == len(parts) * ROWS
    record_property("versions", WritableTable.open(uri).version)
    record_property("replacements overtaken and tried again", sum(overtaken))
    record_property("files put together by upkeep, by delta-rs", f"{compacted}, {foreign}")
    record_property("looks of the readers", sum(looks))


def test_a_spark_driver_killed_at_any_moment_leaves_either_the_old_or_the_new_table(uri, record_property):
    replace(uri, "a", "before")
    replace(uri, "b", "other")
    moments, kills = random.Random(2026), []
    for number in range(DRIVER_KILLS):
        known = whole(uri, "a")
        writer = spark_writer("local[2]", uri, "a", f"run-{number}")
        seconds = moments.uniform(6, 14)
        try:
            writer.wait(seconds)
        except subprocess.TimeoutExpired:
            kill_tree(writer.pid)
            writer.wait()
            kills.append(round(seconds, 1))
        assert whole(uri, "a") in (known, f"run-{number}")
        assert whole(uri, "b") == "other"
    assert kills
    assert spark_writer("local[2]", uri, "a", "last").wait(120) == 0
    assert whole(uri, "a") == "last"
    record_property("killed after seconds", str(kills))


def test_a_lost_executor_duplicates_no_rows(uri, tmp_path, record_property):
    replace(uri, "a", "before")
    before = {file.path for file in WritableTable.open(uri).files()}
    go = tmp_path / "go"
    with spark_cluster(tmp_path / "cluster", workers=2, cores=1, memory="2g") as cluster:
        writer = spark_writer(cluster.url, uri, "a", "new", str(go))
        try:
            deadline = time.monotonic() + 180
            while len(staged(uri, before)) < TASKS - 2:
                assert time.monotonic() < deadline, "the tasks didn't get that far"
                time.sleep(0.1)
            executors = cluster.executors()
            assert len(executors) == 2
            executors[0].kill()
            go.touch()
            assert writer.wait(180) == 0
        finally:
            if writer.poll() is None:
                kill_tree(writer.pid)
    assert whole(uri, "a") == "new"
    assert WritableTable.open(uri).version == 2
    assert len(WritableTable.open(uri).files()) == TASKS
    assert DeltaTable(uri).to_pyarrow_table().num_rows == ROWS
    maintain(WritableTable.open(uri), 168, print)
    assert whole(uri, "a") == "new"
    record_property("files on disk beside the table's", len(staged(uri, before)) - TASKS)


def staged(uri: str, before: set[str]) -> set[str]:
    return {str(path.relative_to(uri)) for path in Path(uri, "part=a").glob("*.parquet")} - before


def kill_tree(pid: int) -> None:
    for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
