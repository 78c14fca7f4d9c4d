"""What a Spark session can do at a time: classic or Spark Connect, on this machine or on a cluster."""

from typing import Any


def is_connect(spark: Any) -> bool:
    """Whether a session talks to a Spark Connect server: it has no JVM beside it."""
    return type(spark).__module__.startswith("pyspark.sql.connect.")


def is_local(spark: Any) -> bool:
    """Whether the workers of a session are processes of this machine, which see its files."""
    return not is_connect(spark) and str(spark.sparkContext.master).startswith("local")


def slots_of(spark: Any) -> int:
    """Tasks that a session runs at the same time."""
    if not is_connect(spark):
        return int(spark.sparkContext.defaultParallelism)
    from pyspark.sql import functions as F  # noqa: N812 - as Spark's documentation has it

    # A client is told nothing of the cluster; a range is cut into as many partitions as there are slots.
    return int(spark.range(1_000_000).select(F.spark_partition_id()).distinct().count())


def cores_of(spark: Any) -> int:
    """Cores of this machine as the JVM counts them, which knows the limits of a container."""
    jvm: Any = spark.sparkContext._jvm
    return int(jvm.java.lang.Runtime.getRuntime().availableProcessors())
