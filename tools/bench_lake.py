"""Benchmark deltars against collecting to the driver and against plain Spark Parquet, in the same run.

It replaces and reads 1,000,000 rows of 1 KB text in one partition. Then it measures the driver's memory at two sizes,
on a standalone cluster with separate executors.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from batch_assets.lake.deltars import register_deltars
from batch_assets.lake.snapshot import Snapshot
from batch_assets.resources.spark import SparkResource
from batch_assets.sources.aclsum import ACLSumDataset
from tools.spark_cluster import spark_cluster

_RUNS = 3
_ROWS, _FEWER_ROWS = 1_000_000, 100_000
_FILES = 8
_TEXT_BYTES = 1024
_PARTITION = json.dumps({"batch": "a"})


def main() -> None:
    """Print rows per second and ratios, then the driver's memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_source(folder / "source", _ROWS)
        _make_source(folder / "fewer", _FEWER_ROWS)
        _throughput(folder)
        _driver_memory(folder)


def _make_source(folder: Path, rows: int) -> None:
    """Write Parquet files with random words from real abstracts, which compress like text."""
    folder.mkdir()
    texts = [document.document or "" for document in ACLSumDataset("test", 100).held_out(100)]
    words = np.array(" ".join(texts).split(), dtype=object)
    random = np.random.default_rng(2026)
    for file in range(_FILES):
        count = rows // _FILES
        picks = random.integers(0, len(words), (count, _TEXT_BYTES // 6))
        documents = [" ".join(words[pick])[:_TEXT_BYTES] for pick in picks]
        table = pa.table({"id": [f"{file}-{row}" for row in range(count)], "document": documents})
        pq.write_table(table.append_column("batch", pa.repeat("a", count)), folder / f"{file}.parquet")


def _throughput(folder: Path) -> None:
    from deltalake import DeltaTable, write_deltalake

    spark = SparkResource(
        master="local[2]", config={"spark.driver.memory": "8g", "spark.driver.maxResultSize": "0"}
    ).session
    register_deltars(spark)
    source = spark.read.parquet(str(folder / "source"))
    ours, collected, parquet = (str(folder / name) for name in ("ours", "collected", "parquet"))

    def noop(frame: Any) -> None:
        frame.write.format("noop").mode("overwrite").save()

    def replace_ours() -> None:
        source.write.format("deltars").mode("overwrite").option("partition", _PARTITION).save(ours)

    def replace_collected() -> None:
        write_deltalake(collected, source.toArrow(), mode="overwrite", predicate="batch = 'a'", partition_by=["batch"])

    def replace_parquet() -> None:
        source.write.mode("overwrite").partitionBy("batch").parquet(parquet)

    def read_collected() -> None:
        noop(spark.createDataFrame(DeltaTable(collected).to_pyarrow_table()))

    def vacuum() -> None:
        for table in (ours, collected):  # each old version takes half a gigabyte
            DeltaTable(table).vacuum(0, dry_run=False, enforce_retention_duration=False)

    source.limit(1).write.format("deltars").mode("append").option("partitionColumns", "batch").save(ours)
    write_deltalake(collected, source.limit(1).toArrow(), partition_by=["batch"])
    sides = {"deltars": replace_ours, "collected": replace_collected, "parquet": replace_parquet}
    writing = _compare("replace", sides, vacuum)
    sides = {
        "deltars": lambda: noop(spark.read.format("deltars").load(ours)),
        "collected": read_collected,
        "parquet": lambda: noop(spark.read.parquet(parquet)),
    }
    reading = _compare("read", sides, lambda: None)
    assert spark.read.format("deltars").load(ours).count() == _ROWS

    print("where the time of deltars goes, in seconds:")
    to_python = _seconds(lambda: noop(source.mapInArrow(_swallow, "rows long")))
    print(f"replace  {to_python:5.1f} reading the source and handing its rows to Python")
    print(f"replace  {writing - to_python:5.1f} encoding Parquet, and the commit")
    nothing = _seconds(lambda: noop(spark.read.format("deltars").option("partition", '{"batch": "none"}').load(ours)))
    decoding = _seconds(lambda: _decode(ours)) / spark.sparkContext.defaultParallelism
    print(f"read     {nothing:5.1f} planning the query and starting a task")
    print(f"read     {decoding:5.1f} decoding Parquet in Python, if the workers share it evenly")
    print(f"read     {reading - nothing - decoding:5.1f} handing the rows to the JVM")
    spark.stop()


def _swallow(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield pa.RecordBatch.from_pydict({"rows": [sum(batch.num_rows for batch in batches)]})


def _decode(uri: str) -> None:
    table = Snapshot.open(uri)
    assert sum(batch.num_rows for batch in table.read_files(table.files())) == _ROWS


def _compare(what: str, sides: dict[str, Callable[[], None]], between: Callable[[], None]) -> float:
    """Time the sides in turns, so that a slow moment affects all of them. Returns the seconds of deltars."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(_RUNS + 1):
        for name, work in sides.items():
            started = time.monotonic()
            work()
            if run:  # the first run starts the Python workers and warms up the JVM
                seconds[name].append(time.monotonic() - started)
            between()
    rates = {name: _ROWS / statistics.median(times) for name, times in seconds.items()}
    for name, rate in rates.items():
        print(
            f"{what:8} {name:10} {rate:10,.0f} rows/s   deltars is {rates['deltars'] / rate:5.2f} times that",
            flush=True,
        )
    return statistics.median(seconds["deltars"])


def _seconds(work: Callable[[], None]) -> float:
    times = []
    for _ in range(_RUNS):
        started = time.monotonic()
        work()
        times.append(time.monotonic() - started)
    return statistics.median(times)


def _driver_memory(folder: Path) -> None:
    """Replace and read on a cluster, with a new driver for each size."""
    sizes = {_FEWER_ROWS: "fewer", _ROWS: "source"}
    used = {}
    with spark_cluster(folder / "cluster", workers=1, cores=2, memory="4g") as cluster:
        for rows, name in sizes.items():
            command = [
                sys.executable,
                "-m",
                "tools.bench_lake",
                cluster.url,
                str(folder / name),
                str(folder / f"t{rows}"),
            ]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            used[rows] = json.loads(printed.splitlines()[-1])
    for rows, memory in used.items():
        heap, python = memory["heap"], memory["python"]
        print(
            f"driver   {rows:10,} rows: JVM heap after collection {heap:5.0f} MiB, Python {python:5.0f} MiB", flush=True
        )
    for kind in ("heap", "python"):
        print(f"driver   {kind}: {used[_ROWS][kind] / used[_FEWER_ROWS][kind]:.2f} times as much for 10 times the rows")


def _drive(master: str, source: str, table: str) -> None:
    """Replace and read on a cluster, then print the memory that this driver still holds, in MiB."""
    spark = SparkResource(master=master, config={"spark.executor.memory": "2g", "spark.ui.enabled": "false"}).session
    register_deltars(spark)
    rows = spark.read.parquet(source)
    rows.limit(1).write.format("deltars").mode("append").option("partitionColumns", "batch").save(table)
    for _ in range(_RUNS):
        rows.write.format("deltars").mode("overwrite").option("partition", _PARTITION).save(table)
        spark.read.format("deltars").load(table).write.format("noop").mode("overwrite").save()
    # The Python processes that plan reads and commit writes are children of the JVM.
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    python = sum(process.memory_info().rss for process in processes if process.name().startswith("python"))
    for _ in range(3):
        spark._jvm.System.gc()
    runtime = spark._jvm.Runtime.getRuntime()
    heap = runtime.totalMemory() - runtime.freeMemory()
    spark.stop()
    print(json.dumps({"heap": heap / 2**20, "python": python / 2**20}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _drive(*sys.argv[1:])
    else:
        main()
