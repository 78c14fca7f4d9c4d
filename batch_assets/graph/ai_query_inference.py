"""Summaries written by SQL: ``ai_query`` sends one request per document with text, up to a limit per batch."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from batch_assets.graph.batch_execution import BatchOutcome, each_batch
from batch_assets.graph.external_assets import CHAT_ENDPOINT
from batch_assets.graph.partitions import BATCHES
from batch_assets.graph.prod_data import prod_data
from batch_assets.graph.table_metadata import (
    column_lineage,
    column_schema,
    open_pinned_documents,
    sample,
    table_metadata,
    totals,
)
from batch_assets.lake.contracts import AI_QUERY_INFERENCE, PROD_DATA
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.resources.endpoints import EndpointsResource
from batch_assets.resources.spark import SparkResource
from batch_assets.settings import Settings
from batch_assets.staleness import input_metadata, input_version, is_stale

if TYPE_CHECKING:
    from batch_assets.ai_functions.execution import Usage

STATEMENT = """\
SELECT id, batch, ai_query('{endpoint}', request, failOnError => false) AS answer
FROM (
  SELECT id, batch,
    CONCAT('Based on the following document, provide a summary in less than 100 words. Document: ', document) AS request
  FROM m4_1_prod_data
  WHERE batch = '{batch}'
  ORDER BY id{limit}
)"""

_LINEAGE = column_lineage(
    {
        **{name: [(prod_data.key, name)] for name in ("id", "batch")},
        **{name: [(prod_data.key, "document")] for name in AI_QUERY_INFERENCE.answer_columns},
    }
)


@dg.asset(
    partitions_def=BATCHES,
    deps=[prod_data, CHAT_ENDPOINT],
    group_name="summaries",
    kinds={"deltalake", "spark", "sql"},
    code_version="1",
    pool="spark",
    description=AI_QUERY_INFERENCE.description,
    metadata=column_schema(AI_QUERY_INFERENCE),
)
def ai_query_inference(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    lake: dg.ResourceParam[Lake],
    spark: SparkResource,
    endpoints: EndpointsResource,
) -> dg.MaterializeResult[None]:
    """Run the SQL statement for each stale batch of the run."""
    output = lake.open(AI_QUERY_INFERENCE)
    documents = open_pinned_documents(context, lake)
    limit = f"\n  LIMIT {settings.ai_query_limit}" if settings.ai_query_limit else ""

    def query(batch: str) -> BatchOutcome:
        from batch_assets.ai_functions.execution import Usage, answer_batch

        statement = STATEMENT.format(endpoint=settings.endpoint, batch=batch, limit=limit)
        endpoint_description = endpoints.describe(settings.endpoint)
        digest = hashlib.sha256(json.dumps([statement, endpoint_description]).encode()).hexdigest()
        expected = {**input_metadata(documents, batch), "statement": digest}
        if not is_stale(output, batch, expected, lake.open(PROD_DATA).version):
            commit = output.last_commit(batch)
            assert commit is not None
            context.log.info(f"batch {batch}: up to date, {output.rows(batch)} rows")
            return outcome(output, batch, commit.version, statement, Usage(), {})
        answered = answer_batch(
            spark.session,
            lake,
            documents,
            output,
            batch,
            endpoints.get(settings.endpoint),
            statement,
            settings.ai_query_limit,
            {**expected, "endpoint": settings.endpoint, "run_id": context.run.run_id},
            context.log.info,
        )
        usage = answered.usage
        context.log.info(
            f"batch {batch}: {answered.rows} rows committed in {answered.seconds:.0f} s, {usage.requests} requests, "
            f"{answered.counts.errors} errors, {answered.counts.no_text} documents without text"
        )
        performance = {
            "documents_per_second": round(usage.requests / answered.seconds, 2),
            "median_seconds": usage.median_seconds,
            "slowest_seconds": usage.slowest_seconds,
        }
        return outcome(lake.open(AI_QUERY_INFERENCE), batch, answered.version, statement, usage, performance)

    def outcome(
        snapshot: BatchSnapshot,
        batch: str,
        version: int,
        statement: str,
        usage: "Usage",
        performance: Mapping[str, Any],
    ) -> BatchOutcome:
        documents_version = input_version(documents, batch)
        counts = totals(snapshot, batch)
        metadata = {
            **table_metadata(lake, snapshot, batch, version, _LINEAGE),
            "input_version": documents_version,
            "endpoint": settings.endpoint,
            "model": endpoints.describe(settings.endpoint)["model"],
            "statement": dg.MetadataValue.md(f"```sql\n{statement}\n```"),
            "requests": usage.requests,
            "rows_reused": counts["summaries"] - usage.answers,
            **counts,
            **performance,
            **sample(
                snapshot, batch, ["id", "generated_summary", "prompt_tokens", "completion_tokens"], settings.samples
            ),
        }
        return BatchOutcome(version, metadata, {prod_data.key: documents_version})

    return each_batch(context, query)
