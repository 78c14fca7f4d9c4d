"""Measure the answers of one batch on Spark: each task sums over its documents, the driver adds up the sums."""

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
from batch_assets.quality.figures import Measurement
from batch_assets.text import has_text

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_COUNTS = ("documents", "summaries", "errors", "empty", "cut", "truncated", "references")
_VERSION = ("table_name", "model_name", "model_version")
_INPUT = (
    "model_name",
    "model_version",
    "id",
    "document",
    "reference",
    "answer",
    "error_message",
    "finish_reason",
    "input_truncated",
)
_AS_JSON = "to_json(`{}`, map('ignoreNullFields', 'false'))"
# Best and worst documents that are kept as examples.
_EXAMPLES = 5


def last_measured(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Select the rows of a quality table that describe the current content of each batch and table.

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


def quality_rows(quality: BatchSnapshot, batch: str) -> list[dict[str, Any]]:
    """The rows of a quality table for one batch, with the number of answers as ``summaries``.

    That is what the column is called in the default pipeline's table.
    """
    rows = [row for part in quality.read(batch) for row in part.to_pylist()]
    return [{"summaries": row["answers"], **row} if "answers" in row else row for row in rows]


@dataclass
class _Sums:
    """Counts, sums and extremes over documents of one model version. Two instances can be added."""

    counts: Counter[str] = field(default_factory=Counter)
    totals: dict[str, float] = field(default_factory=dict)
    values: Counter[str] = field(default_factory=Counter)
    bins: Counter[tuple[str, int]] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    best: list[tuple[float, str]] = field(default_factory=list)
    worst: list[tuple[float, str]] = field(default_factory=list)

    def count(self, task: Measurement, row: Mapping[str, Any]) -> None:
        """Add a document, unless it has no text."""
        document, text = row["document"], row["answer"]
        if not has_text(document):
            return
        reference = row["reference"] if has_text(row["reference"]) else None
        figures = {} if text is None else task.measure(document, reference, text)
        score = figures.get(task.main_score)
        flags = {
            "documents": True,
            "summaries": text is not None,
            "errors": row["error_message"] is not None,
            "empty": text is not None and not has_text(text),
            "cut": row["finish_reason"] == "length",
            "truncated": row["input_truncated"] == "true",
            "references": score is not None,
        }
        self.counts.update(name for name, flag in flags.items() if flag)
        for name, value in figures.items():
            if value is not None:
                self.totals[name] = self.totals.get(name, 0.0) + value
                self.values[name] += 1
                if name in task.binned:
                    self.bins[name, task.binned[name].place(value)] += 1
        if score is not None:
            self._keep_extremes([(score, row["id"])], [(score, row["id"])])
        if reference is not None and text is not None and (outcome := task.outcome(reference, text)) is not None:
            self.outcomes[outcome] += 1

    def __add__(self, other: "_Sums") -> "_Sums":
        combined = _Sums(
            self.counts + other.counts,
            {
                name: self.totals.get(name, 0.0) + other.totals.get(name, 0.0)
                for name in {**self.totals, **other.totals}
            },
            self.values + other.values,
            self.bins + other.bins,
            self.outcomes + other.outcomes,
            self.best,
            self.worst,
        )
        combined._keep_extremes(other.best, other.worst)
        return combined

    def _keep_extremes(self, best: list[tuple[float, str]], worst: list[tuple[float, str]]) -> None:
        self.best = heapq.nsmallest(_EXAMPLES, self.best + best, key=lambda example: (-example[0], example[1]))
        self.worst = heapq.nsmallest(_EXAMPLES, self.worst + worst)

    def row(self, task: Measurement) -> dict[str, Any]:
        """Counts, means, histograms, outcomes and extremes as columns of the quality table."""
        counts = {name: self.counts[name] for name in _COUNTS}
        # Rounded, because the last digits depend on the order in which Spark's tasks end.
        means = {
            figure.name: round(self.totals[figure.name] / self.values[figure.name], 6)
            if self.values[figure.name]
            else None
            for figure in task.figures
        }
        histograms = {
            f"{name}_histogram": bins.histogram({place: n for (key, place), n in self.bins.items() if key == name})
            for name, bins in task.binned.items()
        }
        extremes = {
            name: json.dumps([{"id": id_, task.main_score: round(score, 4)} for score, id_ in examples])
            for name, examples in (("best", self.best), ("worst", self.worst))
        }
        outcomes = json.dumps(dict(sorted(self.outcomes.items())), ensure_ascii=False)
        return {**counts, "answers": counts["summaries"], **means, **histograms, "outcomes": outcomes, **extremes}


def measure_batch(
    batch: str, tables: Mapping[str, "DataFrame"], task: Measurement, now: datetime
) -> list[dict[str, Any]]:
    """Compute the rows of the quality table for one batch, one for each table and model version.

    Args:
        batch: key of the batch.
        tables: the rows of the batch by table name, one per document, with ``model_name``, ``model_version``, ``id``,
            ``document``, ``reference``, ``answer``, ``error_message``, ``finish_reason`` and ``input_truncated``. Rows
            without a ``model_name`` are skipped.
        task: says what is measured.
        now: time of the measurement.
    """

    def add_up(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        sums: dict[tuple[str, ...], _Sums] = {}
        for rows in batches:
            for row in rows.to_pylist():
                sums.setdefault(tuple(row[name] or "" for name in _VERSION), _Sums()).count(task, row)
        yield pa.RecordBatch.from_pydict({"sums": pa.array([pickle.dumps(sums)], pa.binary())})

    texts = [f"CAST({name} AS STRING) AS {name}" for name in _INPUT]
    rows = [frame.selectExpr(f"'{name}' AS table_name", *texts) for name, frame in tables.items()]
    answers = reduce(lambda some, more: some.unionByName(more), rows).where("model_name IS NOT NULL")
    task_sums = [pickle.loads(part.sums) for part in answers.mapInArrow(add_up, "sums binary").collect()]
    return [
        {
            "batch": batch,
            "table_name": table_name,
            "model_name": model_name,
            "model_version": model_version or None,
            **sum((sums[version] for sums in task_sums if version in sums), _Sums()).row(task),
            "measured_at": now,
        }
        for version in sorted({version for sums in task_sums for version in sums})
        for table_name, model_name, model_version in [version]
    ]


def measure_tables(
    spark: "SparkSession",
    documents: BatchSnapshot,
    scored: BatchSnapshot,
    answered: BatchSnapshot | None,
    output: BatchSnapshot,
    batch: str,
    task: Measurement,
    metadata: Mapping[str, Any],
) -> int:
    """Measure one batch of the tables with answers and commit the measures.

    Rows of the quality table for other tables and model versions of the batch are kept.

    Args:
        spark: the session.
        documents: the documents.
        scored: the answers of the registered model.
        answered: the answers of ``ai_query``, None if the pipeline has no endpoint.
        output: the quality table.
        batch: key of the batch.
        task: says what is measured.
        metadata: what the commit records.

    Returns:
        The version of the commit.
    """
    from batch_assets.lake.deltars import read_batch

    unknown = [f"CAST(NULL AS STRING) AS {name}" for name in ("model_version", "input_truncated")]
    reported = ["error_message", "finish_reason"]
    texts = ["id", "document", f"`{documents.table.reference_column}` AS reference"]
    by_model = read_batch(spark, scored, batch).selectExpr(
        "model_name", "model_version", *texts, _answer(scored), *reported, "input_truncated"
    )
    tables = {scored.table.name: by_model}
    if answered is not None:
        by_endpoint = read_batch(spark, answered, batch).selectExpr(
            "id", "model AS model_name", _answer(answered), *reported
        )
        originals = read_batch(spark, documents, batch).selectExpr(*texts)
        if documents.table.source is not None:  # a table of another writer may have an id twice
            originals = originals.dropDuplicates(["id"])
        tables[answered.table.name] = originals.join(by_endpoint, "id").selectExpr("*", *unknown)
    new = measure_batch(batch, tables, task, datetime.now(UTC))
    measured = {_key(row) for row in new}
    kept = [row for table in output.read(batch) for row in table.to_pylist() if _key(row) not in measured]
    schema = output.table.file_schema
    rows = pa.Table.from_pylist(kept + new, schema=schema)
    staged = stage([rows], output.staging_area(batch))
    return output.replace(batch, staged, metadata)


def _answer(table: BatchSnapshot) -> str:
    """The column of the answers as text: a struct as JSON."""
    name = table.table.output_column
    is_nested = pa.types.is_nested(table.table.arrow_schema.field(name).type)
    return f"{_AS_JSON.format(name)} AS answer" if is_nested else f"`{name}` AS answer"


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["table_name"], row["model_name"], row["model_version"]
