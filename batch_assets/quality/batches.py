"""Measure the summaries of one batch on Spark: per-document figures on the workers, their means here."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batch_assets.lake.lake import BatchSnapshot
from batch_assets.lake.staging import stage
from batch_assets.quality.measures import measure_names, per_document
from batch_assets.quality.rouge import ROUGE_TYPES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

FIGURES = (*ROUGE_TYPES, "lead_rouge1", *measure_names())

_COUNTS = {
    "documents": "document IS NOT NULL",
    "summaries": "generated_summary IS NOT NULL",
    "errors": "error_message IS NOT NULL",
    "empty": "generated_summary IS NOT NULL AND trim(generated_summary) = ''",
    "cut": "finish_reason = 'length'",
    "references": "rouge1 IS NOT NULL",
}
_INPUT = "document, summary, generated_summary, error_message, finish_reason, model_name, model_version"


def measure_batch(batch: str, table_name: str, summaries: "DataFrame") -> list[dict[str, Any]]:
    """Rows of ``summary_quality`` for one table of one batch, one for each model version.

    Args:
        batch: key of the batch.
        table_name: table that the summaries are from.
        summaries: one row a document, with ``document``, ``summary`` (the reference),
            ``generated_summary``, ``error_message``, ``finish_reason``, ``model_name`` and
            ``model_version`` (text).
    """
    names = [name.strip() for name in _INPUT.split(",")]
    schema = pa.schema([(name, pa.string()) for name in names] + [(name, pa.float64()) for name in FIGURES])

    def figures(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in batches:
            measured = []
            for row in rows.to_pylist():
                text = row["generated_summary"]
                if row["document"] is not None and text is not None:
                    row |= per_document(row["document"], row["summary"], text)
                measured.append(row)
            yield pa.RecordBatch.from_pylist(measured, schema=schema)

    ddl = ", ".join([f"{name} string" for name in names] + [f"{name} double" for name in FIGURES])
    measured = summaries.select(*names).mapInArrow(figures, ddl)
    measured.createOrReplaceTempView("_measured")
    aggregates = [f"count_if({condition}) AS {name}" for name, condition in _COUNTS.items()]
    # Rounded, because the order in which Spark adds up differs from run to run, and with it the last digits.
    aggregates += [f"round(avg({name}), 6) AS {name}" for name in FIGURES]
    rows = measured.sparkSession.sql(
        f"SELECT model_name, model_version, {', '.join(aggregates)} FROM _measured "
        "WHERE model_name IS NOT NULL GROUP BY model_name, model_version ORDER BY model_name, model_version"
    ).collect()
    now = datetime.now(UTC)
    return [{"batch": batch, "table_name": table_name, **row.asDict(), "measured_at": now} for row in rows]


def measure_tables(
    spark: "SparkSession",
    documents: BatchSnapshot,
    scored: BatchSnapshot,
    answered: BatchSnapshot,
    output: BatchSnapshot,
    batch: str,
    metadata: Mapping[str, Any],
) -> int:
    """Measure one batch of both tables of summaries and commit the figures.

    Rows of ``summary_quality`` for other tables and model versions of the batch stay.

    Returns:
        The version of the commit.
    """
    from batch_assets.lake.deltars import read_batch

    originals = read_batch(spark, documents, batch).select("id", "document", "summary")
    by_model = read_batch(spark, scored, batch)
    by_model = by_model.withColumn("model_version", by_model["model_version"].cast("string"))
    by_endpoint = read_batch(spark, answered, batch).drop("batch").withColumnRenamed("model", "model_name")
    by_endpoint = originals.join(by_endpoint, "id").selectExpr("*", "CAST(NULL AS STRING) AS model_version")
    new = measure_batch(batch, scored.table.name, by_model) + measure_batch(batch, answered.table.name, by_endpoint)
    measured = {_key(row) for row in new}
    kept = [row for table in output.read(batch) for row in table.to_pylist() if _key(row) not in measured]
    schema = output.table.file_schema
    rows = pa.Table.from_pylist(kept + new, schema=schema)
    staged = stage([rows], output.staging_area(batch))
    return output.replace(batch, staged, metadata)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["table_name"], row["model_name"], row["model_version"]
