"""Beyond one machine: the same graph on a cluster and on a Spark Connect server, and faults while it scores."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest

from batch_assets_tests.clusters import loopback_cluster, python_with_wheel
from batch_assets_tests.conftest import environment, write_json_lines
from batch_assets_tests.servers import ChatServer, completion
from batch_assets_tests.test_scoring import but_for_the_model, land, rows, score, score_model_of_its_own
from batch_assets_tests.test_system import batch_assets, tables
from tools.spark_cluster import connect_server

pytestmark = pytest.mark.proof

LOOPBACK = {
    "spark.driver.host": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.executor.memory": "512m",
    "spark.executor.cores": "1",
    "spark.sql.shuffle.partitions": "4",
}


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
    """The tables, without what differs between two loggings of one model."""

    def plain(row: str) -> dict:
        return {name: value for name, value in json.loads(row).items() if name != "request_hash"}

    return {key: sorted(json.dumps(plain(row)) for row in found) for key, found in tables(home).items()}


def test_the_graph_on_a_standalone_cluster_writes_the_same_tables(
    tmp_path, cluster, workers_python, environment_for, on_one_machine
):
    env = environment_for(tmp_path / "home", SPARK_MASTER=cluster.url) | {"PYSPARK_PYTHON": str(workers_python)}
    run = batch_assets("run", env=env)
    assert run.returncode == 0, run.stdout + run.stderr
    assert comparable(tmp_path / "home") == on_one_machine


def test_workers_get_a_packed_environment_that_is_nowhere_on_their_hosts(
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
