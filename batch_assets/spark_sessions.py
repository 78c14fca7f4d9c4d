"""Kind and capacity of a Spark session: classic or Spark Connect, on this machine or on a cluster."""

from typing import Any


def is_connect(spark: Any) -> bool:
    """Whether a session talks to a Spark Connect server, so that this process has no JVM."""
    return type(spark).__module__.startswith("pyspark.sql.connect.")


def is_local(spark: Any) -> bool:
    """Whether a session's workers run on this machine and can read its files."""
    return not is_connect(spark) and str(spark.sparkContext.master).startswith("local")


def task_slots(spark: Any) -> int:
    """Number of tasks that a session runs at the same time."""
    if not is_connect(spark):
        return int(spark.sparkContext.defaultParallelism)
    from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation

    # A client can't see the size of the cluster, but a range has as many partitions as there are slots.
    return int(spark.range(1_000_000).select(F.spark_partition_id()).distinct().count())


def available_cores(spark: Any) -> int:
    """Number of cores on this machine as the JVM counts them, within the limits of a container."""
    jvm: Any = spark.sparkContext._jvm
    return int(jvm.java.lang.Runtime.getRuntime().availableProcessors())
