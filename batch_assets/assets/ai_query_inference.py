"""Summaries by SQL: one request to an endpoint for each document with text among the first rows of a batch."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from batch_assets.assets._batches import DoneBatch, each_batch
from batch_assets.assets._tables import (
    column_lineage,
    column_schema,
    pinned_documents,
    sample,
    table_metadata,
    totals,
)
from batch_assets.assets.external import CHAT_ENDPOINT
from batch_assets.assets.prod_data import prod_data
from batch_assets.automation.partitions import BATCHES
from batch_assets.automation.stale import input_of, input_version, is_stale
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.tables import AI_QUERY_INFERENCE, PROD_DATA
from batch_assets.resources.endpoints import EndpointsResource
from batch_assets.resources.spark import SparkResource
from batch_assets.settings import Settings

if TYPE_CHECKING:
    from batch_assets.ai_functions.statement import Usage

STATEMENT = """\
SELECT id, batch, ai_query('{endpoint}', request, failOnError => false) AS answer
FROM (
  SELECT id, batch,
    CONCAT('Based on the following document, provide a summary in less than 100 words. Document: ', document) AS request
  FROM m4_1_prod_data
  WHERE batch = '{batch}'
  ORDER BY id{limit}
)"""

_ANSWERED = (
    "generated_summary",
    "error_message",
    "prompt_tokens",
    "completion_tokens",
    "finish_reason",
    "request_hash",
)
_LINEAGE = column_lineage(
    {
        **{name: [(prod_data.key, name)] for name in ("id", "batch")},
        **{name: [(prod_data.key, "document")] for name in _ANSWERED},
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
    """Ask for the batches of the run that are stale."""
    output = lake.open(AI_QUERY_INFERENCE)
    documents = pinned_documents(context, lake)
    limit = f"\n  LIMIT {settings.ai_query_limit}" if settings.ai_query_limit else ""

    def ask(batch: str) -> DoneBatch:
        from batch_assets.ai_functions.statement import Usage, answer_batch

        statement = STATEMENT.format(endpoint=settings.endpoint, batch=batch, limit=limit)
        asked_how = endpoints.describe(settings.endpoint)
        digest = hashlib.sha256(json.dumps([statement, asked_how]).encode()).hexdigest()
        expected = {**input_of(documents, batch), "statement": digest}
        if not is_stale(output, batch, expected, lake.open(PROD_DATA).version):
            commit = output.last_commit(batch)
            assert commit is not None
            context.log.info(f"batch {batch}: up to date, {output.rows(batch)} rows")
            return _done(output, batch, commit.version, statement, Usage(), {})
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
        figures = {
            "documents_per_second": round(usage.requests / answered.seconds, 2),
            "median_seconds": usage.median_seconds,
            "slowest_seconds": usage.slowest_seconds,
        }
        return _done(lake.open(AI_QUERY_INFERENCE), batch, answered.version, statement, usage, figures)

    def _done(
        snapshot: BatchSnapshot,
        batch: str,
        version: int,
        statement: str,
        usage: "Usage",
        figures: Mapping[str, Any],
    ) -> DoneBatch:
        made_from = input_version(documents, batch)
        counted = totals(snapshot, batch, ("prompt_tokens", "completion_tokens"))
        metadata = {
            **table_metadata(lake, snapshot, batch, version, _LINEAGE),
            "input_version": made_from,
            "endpoint": settings.endpoint,
            "model": endpoints.describe(settings.endpoint)["model"],
            "statement": dg.MetadataValue.md(f"```sql\n{statement}\n```"),
            "requests": usage.requests,
            "rows_reused": counted["summaries"] - usage.answers,
            **counted,
            **figures,
            **sample(
                snapshot, batch, ["id", "generated_summary", "prompt_tokens", "completion_tokens"], settings.samples
            ),
        }
        return DoneBatch(version, metadata, {prod_data.key: made_from})

    return each_batch(context, ask)
