"""Measure the summaries of one batch on Spark: each task sums over its documents, the driver adds up the sums."""

import heapq
import json
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import reduce
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

_COUNTS = ("documents", "summaries", "errors", "empty", "cut", "truncated", "references")
_VERSION = ("table_name", "model_name", "model_version")
_INPUT = (
    "model_name",
    "model_version",
    "id",
    "document",
    "summary",
    "generated_summary",
    "error_message",
    "finish_reason",
    "input_truncated",
)
# Best and worst documents that are kept as examples.
_EXAMPLES = 5


def last_measured(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Select the rows of ``summary_quality`` that describe the current content of each batch and table.

    These are all rows of the latest measurement: versions of one model may share a batch, and rows with an error name
    the requested model, not the one that answered.
    """
    latest: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        newest = latest.setdefault((row["batch"], row["table_name"]), [row])
        if row["measured_at"] > newest[0]["measured_at"]:
            newest[:] = [row]
        elif row["measured_at"] == newest[0]["measured_at"] and row is not newest[0]:
            newest.append(row)
    return [row for newest in latest.values() for row in newest]


@dataclass
class _Sums:
    """Counts, sums and extremes over documents of one model version. Two instances can be added."""

    counts: Counter[str] = field(default_factory=Counter)
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FIGURES, 0.0))
    values: Counter[str] = field(default_factory=Counter)
    bins: Counter[tuple[str, int]] = field(default_factory=Counter)
    best: list[tuple[float, str]] = field(default_factory=list)
    worst: list[tuple[float, str]] = field(default_factory=list)

    def count(self, row: Mapping[str, Any]) -> None:
        """Add a document, unless it has no text."""
        document, text = row["document"], row["generated_summary"]
        if not has_text(document):
            return
        figures = {} if text is None else per_document(document, row["summary"], text)
        rouge1 = figures.get("rouge1")
        flags = {
            "documents": True,
            "summaries": text is not None,
            "errors": row["error_message"] is not None,
            "empty": text is not None and not has_text(text),
            "cut": row["finish_reason"] == "length",
            "truncated": row["input_truncated"] == "true",
            "references": rouge1 is not None,
        }
        self.counts.update(name for name, flag in flags.items() if flag)
        for name, value in figures.items():
            if value is not None:
                self.totals[name] += value
                self.values[name] += 1
                if name in BINNED:
                    self.bins[name, bin_of(name, value)] += 1
        if rouge1 is not None:
            self._keep_extremes([(rouge1, row["id"])], [(rouge1, row["id"])])

    def __add__(self, other: "_Sums") -> "_Sums":
        totals = {name: self.totals[name] + other.totals[name] for name in FIGURES}
        counts, values, bins = self.counts + other.counts, self.values + other.values, self.bins + other.bins
        combined = _Sums(counts, totals, values, bins, self.best, self.worst)
        combined._keep_extremes(other.best, other.worst)
        return combined

    def _keep_extremes(self, best: list[tuple[float, str]], worst: list[tuple[float, str]]) -> None:
        self.best = heapq.nsmallest(_EXAMPLES, self.best + best, key=lambda example: (-example[0], example[1]))
        self.worst = heapq.nsmallest(_EXAMPLES, self.worst + worst)

    def row(self) -> dict[str, Any]:
        """Counts, means, histograms and extremes as columns of ``summary_quality``."""
        counts = {name: self.counts[name] for name in _COUNTS}
        # Rounded, because the last digits depend on the order in which Spark's tasks end.
        means = {
            name: round(self.totals[name] / self.values[name], 6) if self.values[name] else None for name in FIGURES
        }
        histograms = {
            f"{name}_histogram": histogram(name, {place: n for (key, place), n in self.bins.items() if key == name})
            for name in BINNED
        }
        extremes = {
            name: json.dumps([{"id": id_, "rouge1": round(score, 4)} for score, id_ in examples])
            for name, examples in (("best", self.best), ("worst", self.worst))
        }
        return {**counts, **means, **histograms, **extremes}


def measure_batch(batch: str, tables: Mapping[str, "DataFrame"], now: datetime) -> list[dict[str, Any]]:
    """Compute the rows of ``summary_quality`` for one batch, one for each table and model version.

    Args:
        batch: key of the batch.
        tables: the rows of the batch by table name, one per document, with ``model_name``, ``model_version``, ``id``,
            ``document``, ``summary`` (the reference), ``generated_summary``, ``error_message``, ``finish_reason`` and
            ``input_truncated``. Rows without a ``model_name`` are skipped.
        now: time of the measurement.
    """

    def add_up(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        sums: dict[tuple[str, ...], _Sums] = {}
        for rows in batches:
            for row in rows.to_pylist():
                sums.setdefault(tuple(row[name] or "" for name in _VERSION), _Sums()).count(row)
        yield pa.RecordBatch.from_pydict({"sums": pa.array([pickle.dumps(sums)], pa.binary())})

    texts = [f"CAST({name} AS STRING) AS {name}" for name in _INPUT]
    rows = [frame.selectExpr(f"'{name}' AS table_name", *texts) for name, frame in tables.items()]
    summaries = reduce(lambda some, more: some.unionByName(more), rows).where("model_name IS NOT NULL")
    task_sums = [pickle.loads(task.sums) for task in summaries.mapInArrow(add_up, "sums binary").collect()]
    return [
        {
            "batch": batch,
            "table_name": table_name,
            "model_name": model_name,
            "model_version": model_version or None,
            **sum((sums[version] for sums in task_sums if version in sums), _Sums()).row(),
            "measured_at": now,
        }
        for version in sorted({version for sums in task_sums for version in sums})
        for table_name, model_name, model_version in [version]
    ]


def measure_tables(
    spark: "SparkSession",
    documents: BatchSnapshot,
    scored: BatchSnapshot,
    answered: BatchSnapshot,
    output: BatchSnapshot,
    batch: str,
    metadata: Mapping[str, Any],
) -> int:
    """Measure one batch of both summary tables and commit the measures.

    Rows of ``summary_quality`` for other tables and model versions of the batch are kept.

    Args:
        spark: the session.
        documents: ``m4_1_prod_data``.
        scored: ``m4_1_batch_inference``.
        answered: ``ai_query_inference``.
        output: ``summary_quality``.
        batch: key of the batch.
        metadata: what the commit records.

    Returns:
        The version of the commit.
    """
    from batch_assets.lake.deltars import read_batch

    originals = read_batch(spark, documents, batch).select("id", "document", "summary")
    by_model = read_batch(spark, scored, batch)
    by_endpoint = read_batch(spark, answered, batch).drop("batch").withColumnRenamed("model", "model_name")
    unknown = (f"CAST(NULL AS STRING) AS {name}" for name in ("model_version", "input_truncated"))
    by_endpoint = originals.join(by_endpoint, "id").selectExpr("*", *unknown)
    new = measure_batch(batch, {scored.table.name: by_model, answered.table.name: by_endpoint}, datetime.now(UTC))
    measured = {_key(row) for row in new}
    kept = [row for table in output.read(batch) for row in table.to_pylist() if _key(row) not in measured]
    schema = output.table.file_schema
    rows = pa.Table.from_pylist(kept + new, schema=schema)
    staged = stage([rows], output.staging_area(batch))
    return output.replace(batch, staged, metadata)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["table_name"], row["model_name"], row["model_version"]
