"""A Spark standalone cluster on loopback from the pip package; master and workers are separate processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from tools.ports import free_port

_PATIENCE_SECONDS = 90


class Cluster:
    """A running cluster: ``url`` is the master's address, ``folder`` contains logs and the workers' files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        port, self._ui_port = free_port(), free_port()
        self.url = f"spark://127.0.0.1:{port}"
        self._start(
            "org.apache.spark.deploy.master.Master",
            *("--host", "127.0.0.1", "--port", str(port), "--webui-port", str(self._ui_port)),
        )

    def add_worker(self, cores: int, memory: str) -> None:
        """Start a worker, and wait until the master reports it as alive."""
        before = self._alive()
        work_dir = self.folder / f"worker-{len(self._processes)}"
        self._start(
            "org.apache.spark.deploy.worker.Worker",
            *("--host", "127.0.0.1", "--cores", str(cores), "--memory", memory, "--work-dir", str(work_dir)),
            *("--webui-port", str(free_port()), self.url),
        )
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._alive() - before:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no worker came up within {_PATIENCE_SECONDS} s: see {self.folder}")
            time.sleep(0.2)

    def workers(self) -> list[psutil.Process]:
        """The processes of the running workers, without the master."""
        return [psutil.Process(process.pid) for process in self._processes[1:] if process.poll() is None]

    def executors(self) -> list[psutil.Process]:
        """The processes of the running executors."""
        children = [child for worker in self.workers() for child in worker.children(recursive=True)]
        return [child for child in children if any("CoarseGrainedExecutorBackend" in part for part in _command(child))]

    def stop(self) -> None:
        """Stop all processes."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            process.wait(30)

    def _start(self, main: str, *arguments: str) -> None:
        import pyspark

        home = Path(pyspark.__file__).parent
        environment = {**os.environ, "SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"}
        with (self.folder / f"{main.rsplit('.', 1)[1]}-{len(self._processes)}.log").open("wb") as log:
            command = [str(home / "bin" / "spark-class"), main, *arguments]
            self._processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def _alive(self) -> set[str]:
        """Ids of the workers that the master reports as alive."""
        try:
            workers = httpx.get(f"http://127.0.0.1:{self._ui_port}/json/").json()["workers"]
        except (httpx.TransportError, ValueError):  # the master answers before it has its state
            return set()
        return {worker["id"] for worker in workers if worker["state"] == "ALIVE"}


@contextmanager
def spark_cluster(folder: Path, *, workers: int, cores: int, memory: str) -> Iterator[Cluster]:
    """Run a cluster.

    Args:
        folder: folder for logs and the workers' files.
        workers: number of workers.
        cores: cores per worker.
        memory: memory per worker, such as ``2g``.
    """
    # Workers have no option for the Python to run; executors use the driver's.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    folder.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(folder)
    try:
        for _ in range(workers):
            cluster.add_worker(cores, memory)
        yield cluster
    finally:
        cluster.stop()


@contextmanager
def connect_server(folder: Path, master: str) -> Iterator[str]:
    """Run a Spark Connect server on loopback; yields its address.

    Args:
        folder: folder for the log.
        master: Spark master that runs the tasks.
    """
    import pyspark

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    folder.mkdir(parents=True, exist_ok=True)
    home, port = Path(pyspark.__file__).parent, free_port()
    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.shuffle.partitions": "4",
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": str(port),
    }
    command = [str(home / "bin" / "spark-submit"), "--master", master]
    command += ["--class", "org.apache.spark.sql.connect.service.SparkConnectServer"]
    command += [part for name, value in settings.items() for part in ("--conf", f"{name}={value}")]
    environment = {**os.environ, "SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"}
    with (folder / "connect.log").open("wb") as log:
        process = subprocess.Popen([*command, "spark-internal"], env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"the Spark Connect server did not come up: see {folder / 'connect.log'}")
            time.sleep(0.2)
        yield f"sc://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:  # the process has ended
        return []
