"""An archive of the classes that Spark loads when it starts. With it, Spark starts in half the time.

``make`` runs this module once: ``python -m batch_assets.resources.class_archive``. Java calls it application class data
sharing: https://docs.oracle.com/en/java/javase/17/vm/class-data-sharing.html
"""

import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batch_assets.errors import BatchAssetsError
from batch_assets.java import check_java
from batch_assets.locks import locked
from batch_assets.whole import folder_aside

# Java ignores an archive from another Java or of other files, but would say so on standard output.
_SILENT = "-Xlog:cds=off -Xlog:cds+dynamic=off"


def archive_for(java: str) -> Path:
    """Where the archive is, if there is one.

    Args:
        java: which Java runs Spark, as ``check_java`` says it.
    """
    digest = hashlib.sha256(java.encode()).hexdigest()[:8]
    name = f"spark-{importlib.metadata.version('pyspark')}-{digest}.jsa"
    return Path(sys.prefix) / "share" / "batch_assets" / name


def sharing_options(java: str) -> str:
    """Options with which Java uses the archive, if there is one."""
    path = archive_for(java)
    return f'"-XX:SharedArchiveFile={path}" {_SILENT}' if path.exists() else ""


def make_archive() -> Path:
    """Make the archive, unless it is there: start Spark, run a query, and let Java record the classes that it loaded.

    Archives for other versions of Java or Spark are removed.

    Raises:
        BatchAssetsError: Java is missing, or couldn't write the archive.
        OSError: the environment can't be written.
    """
    path = archive_for(check_java())
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / ".lock"):
        if path.exists():
            return path
        with folder_aside(path.parent, path.name) as aside:
            _start_and_stop(f'"-XX:ArchiveClassesAtExit={aside / path.name}" {_SILENT}')
            (aside / path.name).rename(path)
        for old in {*path.parent.glob("spark-*.jsa")} - {path}:
            old.unlink()
    return path


def _start_and_stop(options: str) -> None:
    import pyarrow as pa
    from pyspark import SparkContext

    from batch_assets.resources.spark import SparkResource, java_options

    def same(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from batches

    config = {"spark.driver.extraJavaOptions": f"{java_options()} {options}"}
    resource = SparkResource(master="local[2]", config=config)
    spark = resource.session
    rows = spark.createDataFrame(pa.table({"id": ["a", "b"], "n": [1, 2]})).mapInArrow(same, "id string, n long")
    rows.createOrReplaceTempView("rows")
    spark.sql(
        "SELECT id, sum(rows.n) AS n, row_number() OVER (ORDER BY id) AS place FROM rows JOIN rows AS other USING (id) "
        "GROUP BY id ORDER BY id LIMIT 1"
    ).collect()
    gateway: Any = SparkContext._gateway
    resource.stop()
    # Java ends when its standard input does, and writes the archive then.
    gateway.proc.stdin.close()
    if gateway.proc.wait() != 0:
        # Java crashes when it starts with an archive that was cut off.
        raise BatchAssetsError("Java couldn't write the archive of Spark's classes: is there room on the disk?")


if __name__ == "__main__":
    os.environ.pop("SPARK_CONF_DIR", None)
    print(f"Spark's classes are archived in {make_archive()}")
