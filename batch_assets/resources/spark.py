"""The Spark session of a run."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field, PrivateAttr


class SparkResource(dg.ConfigurableResource[Any]):
    """One Spark session for a run, started on first use by dagster-pyspark's LazyPySparkResource.

    ``config`` holds further settings of Spark, which win over those made here. A session that was there before the
    run is used, and left as it is.
    """

    master: str
    config: dict[str, str] = Field(default_factory=dict)
    _session: Any = PrivateAttr(default=None)
    _is_ours: bool = PrivateAttr(default=False)

    @property
    def session(self) -> Any:
        """The session, a ``pyspark.sql.SparkSession``."""
        if self._session is None:
            from dagster_pyspark import LazyPySparkResource
            from pyspark.errors import PySparkRuntimeError
            from pyspark.sql import SparkSession

            from batch_assets.java import check_java

            check_java()
            if self.master.startswith("local"):
                # Without it, workers run the first python3 on the path, which knows nothing of this package.
                os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
                os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
                os.environ.setdefault("SPARK_CONF_DIR", str(Path(__file__).parent / "spark_conf"))
            try:
                # Not getActiveSession(): a session is active for one thread of the JVM, and the driver's may change.
                SparkSession.active()
                self._is_ours = False
            except PySparkRuntimeError:
                self._is_ours = True
            self._session = LazyPySparkResource(spark_config=self._config()).spark_session
        return self._session

    def _config(self) -> dict[str, str]:
        config = {
            "spark.app.name": "batch_assets",
            "spark.master": self.master,
            "spark.sql.session.timeZone": "UTC",
            "spark.speculation": "false",
            "spark.ui.showConsoleProgress": "false",
        }
        if self.master.startswith("local"):
            config |= {
                "spark.ui.enabled": "false",
                "spark.driver.host": "127.0.0.1",
                "spark.driver.bindAddress": "127.0.0.1",
                # A batch is small; 200 shuffle tasks would cost more than the work.
                "spark.sql.shuffle.partitions": "4",
                "spark.sql.warehouse.dir": str(Path(tempfile.gettempdir()) / "batch_assets_warehouse"),
            }
        return config | self.config

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Stop the session when the run is over."""
        self.stop()

    def stop(self) -> None:
        """Stop the session if this resource started it."""
        if self._session is not None and self._is_ours:
            self._session.stop()
        self._session = None
