"""MLflow's own way on Spark, unchanged: ``mlflow.pyfunc.spark_udf``, one row at a time. It is the baseline.

https://mlflow.org/docs/latest/api_reference/python_api/mlflow.pyfunc.html#mlflow.pyfunc.spark_udf
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from batch_assets.inference.completions import Completion, CompletionStore
from batch_assets.inference.contract import ScoringModel
from batch_assets.inference.encoding import texts_of
from batch_assets.inference.model_files import check_mlflow_model

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# Rows that go through the model before their completions are written.
_ROWS = "16"


def score_with_spark_udf(
    spark: "SparkSession", missing: "DataFrame", model: ScoringModel, store: CompletionStore
) -> None:
    """Score requests with the stock UDF; what it doesn't tell, such as tokens, stays unknown.

    Args:
        spark: the session.
        missing: ``request_hash`` and ``document``.
        model: the version that writes.
        store: where finished completions go.

    Raises:
        BatchAssetsError: the model could run code, or is not supported.
    """
    import mlflow
    from pyspark.sql import functions as F  # noqa: N812 - as Spark's documentation has it

    def plain(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in batches:
            # The template is the logged model's own; only markup in the document is broken up.
            texts = [model.without_markup(text or "") for text in texts_of(rows.column("document"))]
            columns = [rows.column("request_hash"), pa.array(texts, pa.string())]
            yield pa.RecordBatch.from_arrays(columns, schema=rows.schema)

    def keep(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in batches:
            now = datetime.now(UTC)
            store.write(
                [
                    Completion(
                        request_hash=row["request_hash"],
                        text=row["text"],
                        error_message=None,
                        finish_reason=None,
                        input_tokens=None,
                        output_tokens=None,
                        input_truncated=None,
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
