"""The baseline: MLflow's stock ``mlflow.pyfunc.spark_udf``, one row at a time.

https://mlflow.org/docs/latest/api_reference/python_api/mlflow.pyfunc.html#mlflow.pyfunc.spark_udf
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from batch_assets.engines.contract import Completion, ScoringModel
from batch_assets.engines.model_files import check_mlflow_model
from batch_assets.scoring.completions import CompletionStore
from batch_assets.text import texts_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# Rows that are scored before their completions are written.
_ROWS = "16"


def score_with_spark_udf(
    spark: "SparkSession", missing: "DataFrame", model: ScoringModel, store: CompletionStore
) -> None:
    """Score requests with the stock UDF. Fields that it doesn't report, such as token counts, stay null.

    Args:
        spark: the session.
        missing: the requests, with ``request_hash`` and ``document``.
        model: the version that writes the answers.
        store: where finished completions are written.

    Raises:
        BatchAssetsError: the model could run code, or is not supported.
    """
    import mlflow
    from pyspark.sql import functions as F  # noqa: N812 - the name in Spark's documentation

    def plain(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in batches:
            # The logged model applies its template itself, so only markup in the document is broken up.
            texts = [model.without_markup(text or "") for text in texts_of(rows.column("document"))]
            columns = [rows.column("request_hash"), pa.array(texts, pa.string())]
            yield pa.RecordBatch.from_arrays(columns, schema=rows.schema)

    def keep(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in batches:
            now = datetime.now(UTC)
            store.write(
                [
                    replace(
                        model.checked(Completion(row["text"])),
                        request_hash=row["request_hash"],
                        model=model.name,
                        model_version=model.version,
                        completed_at=now,
                    )
                    for row in rows.to_pylist()
                ]
            )
            yield pa.RecordBatch.from_pydict({"scored": [len(rows)]})

    check_mlflow_model(Path(model.path))
    setting = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = str(spark.conf.get(setting))
    spark.conf.set(setting, _ROWS)
    try:
        predict = mlflow.pyfunc.spark_udf(spark, model.path, result_type="string", env_manager="local")
        documents = missing.mapInArrow(plain, "request_hash string, document string")
        texts = documents.withColumn("text", predict(F.col("document"))).select("request_hash", "text")
        texts.mapInArrow(keep, "scored long").collect()
    finally:
        spark.conf.set(setting, before)
