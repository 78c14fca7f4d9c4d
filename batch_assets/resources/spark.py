"""The Spark session of a run."""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field, PrivateAttr

from batch_assets.errors import BatchAssetsError
from batch_assets.resources.class_archive import sharing_options
from batch_assets.settings import Settings, redacted

# Does not exist on purpose: Java can't use its class archive if a folder on the class path contains files.
_NO_CONF = Path(__file__).with_name("no_spark_conf")
# Only one thread starts Spark; the others then find its session.
_STARTING = threading.Lock()
# Where Spark unpacks the Python environment, relative to the folder that workers run in.
_UNPACKED = "environment"


@cache
def _folder_of_driver() -> tempfile.TemporaryDirectory[str]:
    """A folder with the driver's environment where workers find theirs, because the driver starts Python too.

    It is the JVM's working folder, so it must exist as long as this process.
    """
    folder = tempfile.TemporaryDirectory(prefix="batch_assets_driver_")
    (Path(folder.name) / _UNPACKED).symlink_to(sys.prefix)
    return folder


@contextlib.contextmanager
def _quiet_jvm() -> Iterator[None]:
    """Hide a warning that users can't act on from a JVM that starts inside this context.

    Spark itself requests the incubator module. All other lines that the JVM and its Python workers write to standard
    error are passed on while this process lives.
    """
    reader, writer = os.pipe()
    before = os.dup(2)

    def pass_on() -> None:
        with os.fdopen(reader, "rb") as lines, os.fdopen(before, "wb", buffering=0) as passed_on:
            for line in lines:
                if not line.startswith(b"WARNING: Using incubator modules"):
                    passed_on.write(line)

    os.dup2(writer, 2)
    os.close(writer)
    threading.Thread(target=pass_on, name="standard error of the JVM", daemon=True).start()
    try:
        yield
    finally:
        os.dup2(before, 2)


def java_options() -> str:
    """Options for a JVM that does all of Spark's work on this machine."""
    # These halve the start time: the second compiler would not pay off before the start is over, and the work itself
    # is done in Python.
    options = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    if os.environ.get("SPARK_CONF_DIR", str(_NO_CONF)) == str(_NO_CONF):
        options += f' "-Dlog4j2.configurationFile={Path(__file__).with_name("log4j2.properties")}"'
    return options


class SparkResource(dg.ConfigurableResource[Any]):
    """One Spark session for a run, started on first use: by dagster-pyspark's LazyPySparkResource, or on a server.

    ``config`` holds more Spark settings, which override those set here. A session that existed before the run is used
    and kept. Workers on other machines are checked once for the driver's packages and code.
    """

    master: str
    remote: str | None = None
    environment: str | None = None
    config: dict[str, str] = Field(default_factory=dict)
    _session: Any = PrivateAttr(default=None)
    _is_ours: bool = PrivateAttr(default=False)

    @classmethod
    def of(cls, settings: Settings) -> "SparkResource":
        """Create the resource from the settings."""
        return cls(master=settings.spark_master, remote=settings.spark_remote, environment=settings.spark_environment)

    @property
    def session(self) -> Any:
        """The session, a ``pyspark.sql.SparkSession``.

        Raises:
            BatchAssetsError: the server can't be reached, or workers lack what they need.
        """
        with _STARTING:
            if self._session is None:
                self._session = self._start()
        return self._session

    def _start(self) -> Any:
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession

        try:
            # Not getActiveSession(): a session is active for one JVM thread, and the driver's thread may change.
            SparkSession.active()
            self._is_ours = False
        except PySparkRuntimeError:
            self._is_ours = True
        session = self._classic() if self.remote is None else self._connected(self.remote)
        if self.remote is not None or not self.master.startswith("local"):
            self._check(session)
        return session

    def start_ahead(self) -> None:
        """Start the session and a Python worker in the background, for a run that will need them.

        Does nothing for a cluster, which is used only when needed, or for an environment that Spark unpacks, which
        needs another working folder.
        """
        if self.remote is not None or self.environment is not None or not self.master.startswith("local"):
            return

        def start() -> None:
            # If this fails, the run tries again when it needs the session, and reports the error then.
            with contextlib.suppress(Exception):
                self.session.range(1).mapInArrow(lambda rows: rows, "id long").collect()

        # Not a daemon thread: the process waits for it at exit, so that no output to standard error is lost.
        threading.Thread(target=start, name="start of Spark").start()

    def _classic(self) -> Any:
        from dagster_pyspark import LazyPySparkResource

        from batch_assets.resources.java import check_java

        java = check_java()
        if self.master.startswith("local"):
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
            os.environ.setdefault("SPARK_CONF_DIR", str(_NO_CONF))
        if self.environment is None:
            # Otherwise, workers run the first python3 on the path, which may not have this package.
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
            with _quiet_jvm():
                return LazyPySparkResource(spark_config=self._config(java)).spark_session
        os.environ["PYSPARK_PYTHON"] = f"./{_UNPACKED}/bin/python"
        with _quiet_jvm(), contextlib.chdir(_folder_of_driver().name):
            return LazyPySparkResource(spark_config=self._config(java)).spark_session

    def _connected(self, remote: str) -> Any:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession

        try:
            session = SparkSession.builder.remote(remote).getOrCreate()
            session.conf.set("spark.sql.session.timeZone", "UTC")
            session.conf.set("spark.sql.variable.substitute", "false")
        except PySparkException as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BatchAssetsError(
                f"can't use the Spark Connect server {redacted(remote)} ({reason}): see docs/how-to/cluster.md"
            ) from error
        return session

    def _check(self, session: Any) -> None:
        from batch_assets.resources.spark_workers import check_workers

        try:
            for line in check_workers(session):
                dg.get_dagster_logger().warning(line)
        except BatchAssetsError:
            if self._is_ours:
                session.stop()
            raise

    def _config(self, java: str) -> dict[str, str]:
        config = {
            "spark.app.name": "batch_assets",
            "spark.master": self.master,
            "spark.sql.session.timeZone": "UTC",
            # A ${name} in a prompt is text, not a variable of Spark or of the environment.
            "spark.sql.variable.substitute": "false",
            "spark.speculation": "false",
            "spark.ui.showConsoleProgress": "false",
        }
        if self.environment is not None:
            config["spark.archives"] = f"{self.environment}#{_UNPACKED}"
        if self.master.startswith("local"):
            config |= {
                "spark.ui.enabled": "false",
                "spark.driver.host": "127.0.0.1",
                "spark.driver.bindAddress": "127.0.0.1",
                "spark.python.daemon.module": "batch_assets.resources.python_daemon",
                "spark.driver.extraJavaOptions": f"{java_options()} {sharing_options(java)}",
                # A batch is small; 200 shuffle tasks would cost more than the work.
                "spark.sql.shuffle.partitions": "4",
                "spark.sql.warehouse.dir": str(Path(tempfile.gettempdir()) / "batch_assets_warehouse"),
            }
        return config | self.config

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Stop the session when the run ends."""
        self.stop()

    def stop(self) -> None:
        """Stop the session if this resource started it."""
        if self._session is not None and self._is_ours:
            self._session.stop()
        self._session = None
