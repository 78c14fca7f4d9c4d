"""ROUGE and reference-free measures of the summaries, for each batch, table and model version."""

import dagster as dg

from batch_assets.graph.ai_query_inference import ai_query_inference
from batch_assets.graph.batch_execution import BatchOutcome, each_batch
from batch_assets.graph.batch_inference import batch_inference
from batch_assets.graph.partitions import BATCHES
from batch_assets.graph.table_metadata import (
    column_lineage,
    column_schema,
    open_pinned_documents,
    table_metadata,
)
from batch_assets.lake.contracts import AI_QUERY_INFERENCE, BATCH_INFERENCE, SUMMARY_QUALITY
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.quality.batch_measures import FIGURES
from batch_assets.resources.spark import SparkResource
from batch_assets.staleness import input_version, is_stale, quality_input_metadata

_SUMMARY_ASSETS = (batch_inference.key, ai_query_inference.key)
_TEXT_METRICS = (*FIGURES, "words_histogram", "compression_histogram", "coverage_histogram", "summaries", "empty")
_LINEAGE = column_lineage(
    {
        "batch": [(key, "batch") for key in _SUMMARY_ASSETS],
        "errors": [(key, "error_message") for key in _SUMMARY_ASSETS],
        "cut": [(key, "finish_reason") for key in _SUMMARY_ASSETS],
        "truncated": [(batch_inference.key, "input_truncated")],
        **{name: [(key, "generated_summary") for key in _SUMMARY_ASSETS] for name in _TEXT_METRICS},
        **{name: [(key, "id") for key in _SUMMARY_ASSETS] for name in ("best", "worst")},
    }
)


@dg.asset(
    partitions_def=BATCHES,
    deps=[batch_inference, ai_query_inference],
    group_name="summaries",
    kinds={"deltalake", "spark"},
    code_version="1",
    pool="spark",
    description=SUMMARY_QUALITY.description,
    metadata=column_schema(SUMMARY_QUALITY),
)
def summary_quality(
    context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake], spark: SparkResource
) -> dg.MaterializeResult[None]:
    """Measure the batches of the run whose summaries have changed."""
    output = lake.open(SUMMARY_QUALITY)
    scored, answered = lake.open(BATCH_INFERENCE), lake.open(AI_QUERY_INFERENCE)
    documents = open_pinned_documents(context, lake)

    def measure(batch: str) -> BatchOutcome:
        from batch_assets.quality.batch_measures import measure_tables

        expected = quality_input_metadata(scored, answered, batch)
        if not is_stale(output, batch, expected, scored.version):
            commit = output.last_commit(batch)
            assert commit is not None
            context.log.info(f"batch {batch}: up to date")
            return outcome(output, batch, commit.version)
        metadata = {**expected, "run_id": context.run.run_id}
        version = measure_tables(spark.session, documents, scored, answered, output, batch, metadata)
        context.log.info(f"batch {batch}: measured")
        return outcome(lake.open(SUMMARY_QUALITY), batch, version)

    def outcome(snapshot: BatchSnapshot, batch: str, version: int) -> BatchOutcome:
        rows = [row for table in snapshot.read(batch) for row in table.to_pylist()]
        figures = {
            f"{row['table_name']} {row['model_version'] or row['model_name']} {name}": round(row[name], 4)
            for row in rows
            for name in ("rouge1", "rougeL", "compression")
            if row[name] is not None
        }
        inputs = {
            batch_inference.key: input_version(scored, batch),
            ai_query_inference.key: input_version(answered, batch),
        }
        metadata = {**table_metadata(lake, snapshot, batch, version, _LINEAGE), **figures}
        return BatchOutcome(version, metadata, inputs)

    return each_batch(context, measure)
