"""Measure the summaries of one batch on Spark: per-document figures on the workers, their means here."""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batch_assets.lake.lake import BatchSnapshot
from batch_assets.lake.staging import stage
from batch_assets.quality.histograms import BINNED, bin_of, histogram
from batch_assets.quality.measures import measure_names, per_document
from batch_assets.quality.rouge import ROUGE_TYPES
from batch_assets.text import has_text

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

FIGURES = (*ROUGE_TYPES, "lead_rouge1", *measure_names())

# A document without text counts in none of them.
_COUNTS = {
    "documents": "true",
    "summaries": "generated_summary IS NOT NULL",
    "errors": "error_message IS NOT NULL",
    "empty": "is_empty",
    "cut": "finish_reason = 'length'",
    "truncated": "input_truncated = 'true'",
    "references": "rouge1 IS NOT NULL",
}
_INPUT = (
    "id",
    "document",
    "summary",
    "generated_summary",
    "error_message",
    "finish_reason",
    "input_truncated",
    "model_name",
    "model_version",
)
_KEPT = tuple(name for name in _INPUT if name not in ("document", "summary"))
_VERSION = "model_name, model_version"
# Documents at either end that people are shown.
_SHOWN = 5


def last_measured(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of rows of ``summary_quality``, those that say what each batch of each table holds now.

    They are those that were measured together last: versions of one model may share a batch, and rows with an error
    have the model that was asked for, not the one that answered.
    """
    last: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        known = last.setdefault((row["batch"], row["table_name"]), [row])
        if row["measured_at"] > known[0]["measured_at"]:
            known[:] = [row]
        elif row["measured_at"] == known[0]["measured_at"] and row is not known[0]:
            known.append(row)
    return [row for together in last.values() for row in together]


def measure_batch(batch: str, table_name: str, summaries: "DataFrame", now: datetime) -> list[dict[str, Any]]:
    """Rows of ``summary_quality`` for one table of one batch, one for each model version.

    Args:
        batch: key of the batch.
        table_name: table that the summaries are from.
        summaries: one row a document, with ``id``, ``document``, ``summary`` (the reference), ``generated_summary``,
            ``error_message``, ``finish_reason``, ``input_truncated``, ``model_name`` and ``model_version``.
        now: when they are measured.
    """
    figures_schema = [(name, pa.float64()) for name in FIGURES] + [(f"{name}_bin", pa.int64()) for name in BINNED]
    flags = [(name, pa.bool_()) for name in ("has_text", "is_empty")]
    schema = pa.schema([(name, pa.string()) for name in _KEPT] + flags + figures_schema)

    def figures(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in batches:
            measured = []
            for row in rows.to_pylist():
                document, text = row["document"], row["generated_summary"]
                row["has_text"] = has_text(document)
                row["is_empty"] = text is not None and not has_text(text)
                if has_text(document) and text is not None:
                    row |= per_document(document, row["summary"], text)
                row |= {f"{name}_bin": None if row.get(name) is None else bin_of(name, row[name]) for name in BINNED}
                measured.append(row)
            yield pa.RecordBatch.from_pylist(measured, schema=schema)

    from pyspark.sql.pandas.types import from_arrow_schema

    texts = summaries.selectExpr(*(f"CAST({name} AS STRING) AS {name}" for name in _INPUT))
    measured = texts.mapInArrow(figures, from_arrow_schema(schema)).where("model_name IS NOT NULL").persist()
    try:
        return [{"batch": batch, "table_name": table_name, **row, "measured_at": now} for row in _by_version(measured)]
    finally:
        measured.unpersist()


def _by_version(measured: "DataFrame") -> list[dict[str, Any]]:
    """Counts, means, distributions and extremes of each model version."""
    spark = measured.sparkSession
    measured.createOrReplaceTempView("_measured")
    aggregates = [f"count_if(has_text AND {condition}) AS {name}" for name, condition in _COUNTS.items()]
    # Rounded, because the order in which Spark adds up differs from run to run, and with it the last digits.
    aggregates += [f"round(avg({name}), 6) AS {name}" for name in FIGURES]
    rows = [
        row.asDict()
        for row in spark.sql(
            f"SELECT {_VERSION}, {', '.join(aggregates)} FROM _measured GROUP BY {_VERSION} ORDER BY {_VERSION}"
        ).collect()
    ]
    of_version = {(row["model_name"], row["model_version"]): row for row in rows}
    for name in BINNED:
        counted: dict[tuple[str, str | None], dict[int, int]] = {key: {} for key in of_version}
        for row in spark.sql(
            f"SELECT {_VERSION}, {name}_bin AS bin, count(*) AS count FROM _measured WHERE {name} IS NOT NULL "
            f"GROUP BY {_VERSION}, {name}_bin"
        ).collect():
            counted[row["model_name"], row["model_version"]][row["bin"]] = row["count"]
        for key, counts in counted.items():
            of_version[key][f"{name}_histogram"] = histogram(name, counts)
    for name, order in (("best", "DESC"), ("worst", "ASC")):
        shown: dict[tuple[str, str | None], list[dict[str, Any]]] = {key: [] for key in of_version}
        for row in spark.sql(
            f"SELECT {_VERSION}, id, rouge1 FROM (SELECT *, row_number() OVER (PARTITION BY {_VERSION} "
            f"ORDER BY rouge1 {order}, id) AS place FROM _measured WHERE rouge1 IS NOT NULL) "
            f"WHERE place <= {_SHOWN} ORDER BY place"
        ).collect():
            one = {"id": row["id"], "rouge1": round(row["rouge1"], 4)}
            shown[row["model_name"], row["model_version"]].append(one)
        for key, documents in shown.items():
            of_version[key][name] = json.dumps(documents)
    return rows


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
    by_endpoint = read_batch(spark, answered, batch).drop("batch").withColumnRenamed("model", "model_name")
    unknown = (f"CAST(NULL AS STRING) AS {name}" for name in ("model_version", "input_truncated"))
    by_endpoint = originals.join(by_endpoint, "id").selectExpr("*", *unknown)
    now = datetime.now(UTC)
    new = measure_batch(batch, scored.table.name, by_model, now)
    new += measure_batch(batch, answered.table.name, by_endpoint, now)
    measured = {_key(row) for row in new}
    kept = [row for table in output.read(batch) for row in table.to_pylist() if _key(row) not in measured]
    schema = output.table.file_schema
    rows = pa.Table.from_pylist(kept + new, schema=schema)
    staged = stage([rows], output.staging_area(batch))
    return output.replace(batch, staged, metadata)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["table_name"], row["model_name"], row["model_version"]
