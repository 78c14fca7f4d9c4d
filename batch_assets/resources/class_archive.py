"""An archive of the classes that Spark loads at start, which halves the time that Spark takes to start.

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

from batch_assets.atomic_files import staging_folder
from batch_assets.errors import BatchAssetsError
from batch_assets.locks import locked
from batch_assets.resources.java import check_java

# Java ignores an archive of another Java or of other files, but would log that to standard output.
_SILENT = "-Xlog:cds=off -Xlog:cds+dynamic=off"


def archive_for(java: str) -> Path:
    """Path of the archive, which may not exist.

    Args:
        java: the Java that runs Spark, as returned by ``check_java``.
    """
    digest = hashlib.sha256(java.encode()).hexdigest()[:8]
    name = f"spark-{importlib.metadata.version('pyspark')}-{digest}.jsa"
    return Path(sys.prefix) / "share" / "batch_assets" / name


def sharing_options(java: str) -> str:
    """JVM options to use the archive; empty if there is none."""
    path = archive_for(java)
    return f'"-XX:SharedArchiveFile={path}" {_SILENT}' if path.exists() else ""


def make_archive() -> Path:
    """Create the archive unless it exists: start Spark, run a query, and let Java record the loaded classes.

    Removes archives for other versions of Java or Spark.

    Raises:
        BatchAssetsError: Java is missing or couldn't write the archive.
        OSError: the Python environment is not writable.
    """
    path = archive_for(check_java())
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / ".lock"):
        if path.exists():
            return path
        with staging_folder(path.parent, path.name) as aside:
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
    # Java exits when its standard input closes, and writes the archive then.
    gateway.proc.stdin.close()
    if gateway.proc.wait() != 0:
        # A truncated archive would make Java crash at its next start.
        raise BatchAssetsError("Java couldn't write the archive of Spark's classes: check the disk space and try again")


if __name__ == "__main__":
    os.environ.pop("SPARK_CONF_DIR", None)
    print(f"Spark's classes are archived in {make_archive()}")
