"""The graph on a cluster and on a Spark Connect server, and faults during scoring."""

import json
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from batch_assets_tests.clusters import loopback_cluster, python_with_wheel
from batch_assets_tests.conftest import batch_assets, environment, write_json_lines
from batch_assets_tests.servers import ChatServer, completion
from batch_assets_tests.test_cluster import driver, finished
from batch_assets_tests.test_graph import tables_of
from batch_assets_tests.test_scoring import but_for_the_model, land, rows, score, score_model_of_its_own
from tools.spark_cluster import connect_server

pytestmark = pytest.mark.proof

LOOPBACK = {
    "spark.driver.host": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.executor.memory": "512m",
    "spark.executor.cores": "1",
    "spark.sql.shuffle.partitions": "4",
}

DOCUMENTS = 400
# Minimum seconds per document: a worker flushes every two seconds, so a flush holds 40 documents.
SECONDS = 0.05
FLUSH = 40


@pytest.fixture(scope="module")
def workers_python(tmp_path_factory) -> Path:
    return python_with_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with loopback_cluster(tmp_path_factory.mktemp("cluster") / "c", workers=2, cores=1, memory="1g") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def environment_for(tmp_path_factory, documents, t5_folder):
    data = tmp_path_factory.mktemp("data")
    write_json_lines(data / "a.jsonl", documents[:12])
    write_json_lines(data / "b.jsonl", documents[12:20])
    spark_conf = tmp_path_factory.mktemp("conf")
    (spark_conf / "spark-defaults.conf").write_text("".join(f"{name} {value}\n" for name, value in LOOPBACK.items()))

    def make(home: Path, **values: str) -> dict[str, str]:
        home.mkdir(parents=True, exist_ok=True)
        endpoints = home / "endpoints.toml"
        endpoints.write_text(f'[endpoints.counted]\nbase_url = "{server.url}"\nmodel = "m"')
        of_data = {"MODEL": str(t5_folder), "DATASET": str(data), "EVALUATION_ROWS": "3"}
        of_endpoint = {"ENDPOINTS": str(endpoints), "ENDPOINT": "counted"}
        variables = environment(home, **of_data, **of_endpoint, **values)
        return {**variables, "SPARK_CONF_DIR": str(spark_conf), "SPARK_LOCAL_IP": "127.0.0.1"}

    with ChatServer(lambda body, n: completion("Answer to " + body["messages"][0]["content"][-30:])) as server:
        yield make


@pytest.fixture(scope="module")
def on_one_machine(tmp_path_factory, environment_for) -> dict:
    home = tmp_path_factory.mktemp("local") / "home"
    run = batch_assets("run", env=environment_for(home, SPARK_MASTER="local[2,4]"))
    assert run.returncode == 0, run.stdout + run.stderr
    return comparable(home)


def comparable(home: Path) -> dict:
    """The tables, without the values that differ each time the same model is logged."""

    def plain(row: dict) -> str:
        return json.dumps({name: value for name, value in row.items() if name != "request_hash"}, default=str)

    return {key: sorted(map(plain, found)) for key, found in tables_of(home / "lake").items()}


def test_the_graph_on_a_standalone_cluster_writes_the_same_tables(
    tmp_path, cluster, workers_python, environment_for, on_one_machine
):
    env = environment_for(tmp_path / "home", SPARK_MASTER=cluster.url) | {"PYSPARK_PYTHON": str(workers_python)}
    run = batch_assets("run", env=env)
    assert run.returncode == 0, run.stdout + run.stderr
    assert comparable(tmp_path / "home") == on_one_machine


def test_workers_use_a_packed_environment_that_is_not_installed_on_their_hosts(
    tmp_path, cluster, workers_python, environment_for, on_one_machine
):
    archive = tmp_path / "environment.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(workers_python.parents[1], ".")
    values = {"SPARK_MASTER": cluster.url, "SPARK_ENVIRONMENT": str(archive)}
    run = batch_assets("run", env=environment_for(tmp_path / "home", **values))
    assert run.returncode == 0, run.stdout + run.stderr
    assert comparable(tmp_path / "home") == on_one_machine


def test_the_graph_on_a_spark_connect_server_writes_the_same_tables(
    tmp_path, monkeypatch, workers_python, environment_for, on_one_machine
):
    monkeypatch.setenv("PYSPARK_PYTHON", str(workers_python))
    with connect_server(tmp_path / "server", "local[2]") as url:
        run = batch_assets("run", env=environment_for(tmp_path / "home", SPARK_REMOTE=url))
        assert run.returncode == 0, run.stdout + run.stderr
        statement = "SELECT id, ai_query('counted', document) AS a FROM m4_1_prod_data LIMIT 3"
        asked = batch_assets("query", statement, "--json", env=environment_for(tmp_path / "home", SPARK_REMOTE=url))
        assert asked.returncode == 0, asked.stderr
        assert len(asked.stdout.splitlines()) == 3
    assert comparable(tmp_path / "home") == on_one_machine


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.kill()


@contextmanager
def paused(processes: list[psutil.Process]) -> Iterator[None]:
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def with_children(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


class Fault:
    """A fault injected when a quarter of the documents is done; ``lost`` workers may each lose one flush."""

    def __init__(self, name: str, lost: int) -> None:
        self.name, self.lost = name, lost

    def __repr__(self) -> str:
        return self.name

    def happens(self, cluster, run: subprocess.Popen, disk: Path) -> None:
        match self.name:
            case "an executor is killed":
                kill(cluster.executors()[:1])
            case "a worker is killed with its executor":
                kill(with_children(cluster.workers()[0]))
                cluster.add_worker(1, "1g")
            case "the driver is killed":
                run.kill()
            case "a worker is paused beyond its heartbeat":
                with paused(with_children(cluster.workers()[0])), suppress(subprocess.TimeoutExpired):
                    run.wait(60)
            case "one task is slow":
                python = cluster.executors()[0].children(recursive=True)[-1:]
                with paused(python), suppress(subprocess.TimeoutExpired):
                    run.wait(20)
            case "the disk of the workers is full":
                filler = disk / "filler"
                with filler.open("wb") as file, suppress(OSError):
                    while True:
                        file.write(b"0" * 1024 * 1024)
                try:
                    run.wait(60)
                except subprocess.TimeoutExpired:  # the run writes elsewhere, or keeps retrying
                    pass
                finally:
                    filler.unlink()


FAULTS = [
    Fault("an executor is killed", 1),
    Fault("a worker is killed with its executor", 1),
    Fault("the driver is killed", 2),
    Fault("a worker is paused beyond its heartbeat", 1),
    Fault("one task is slow", 0),
    Fault("the disk of the workers is full", 2),
]


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory) -> Iterator[Path]:
    """A separate file system for the files that workers write outside the lake."""
    disk = tmp_path_factory.mktemp("disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture(scope="module")
def faulty_cluster(small_disk):
    with loopback_cluster(small_disk / "c", workers=2, cores=1, memory="1g") as cluster:
        yield cluster


@pytest.fixture
def undisturbed(spark, lake, t5, documents):
    """The rows of batch a, scored on one machine; batch b contains the same documents."""
    texts = [f"{number}. {documents[number % 100]['document'][:200]}" for number in range(DOCUMENTS)]
    land(lake, "a", texts)
    score(spark, lake, "a", t5)
    land(lake, "b", texts)
    return but_for_the_model(rows(lake, "a"))


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_fault_during_the_scoring_of_400_documents_leaves_a_correct_table(
    fault, lake, t5, undisturbed, tmp_path, faulty_cluster, small_disk, workers_python, record_property
):
    counter = tmp_path / "counter"
    counter.touch()
    settings = {
        **LOOPBACK,
        "spark.executor.heartbeatInterval": "2s",
        "spark.network.timeout": "15s",
        "spark.network.timeoutInterval": "5s",
    }
    work = {
        "lake": lake,
        "models": {"b": score_model_of_its_own(t5)},
        "seconds": SECONDS,
        "resource": {"master": faulty_cluster.url, "config": settings},
        "counter": str(counter),
    }
    run = driver(tmp_path, workers_python, **work)
    deadline = time.monotonic() + 240
    while counter.stat().st_size < DOCUMENTS // 4:
        assert run.poll() is None and time.monotonic() < deadline, finished(run, tmp_path)
        time.sleep(0.05)
    fault.happens(faulty_cluster, run, small_disk)
    status, said = finished(run, tmp_path)
    reruns = 0
    if status:
        assert rows(lake, "b") == []
        reruns = 1
        status, said = finished(driver(tmp_path, workers_python, **work), tmp_path)
    assert status == 0, said
    assert but_for_the_model(rows(lake, "b")) == undisturbed
    scored = counter.stat().st_size
    record_property("documents scored", scored)
    record_property("runs", 1 + reruns)
    print(f"{fault}: {scored} documents scored, {1 + reruns} runs")
    # A lost worker repeats the document in progress and those not yet flushed.
    assert DOCUMENTS <= scored <= DOCUMENTS + fault.lost * (FLUSH + 1)
