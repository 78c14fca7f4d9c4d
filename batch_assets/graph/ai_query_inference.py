"""Answers written by SQL: ``ai_query`` sends one request per document with text, up to a limit per batch."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from batch_assets.graph.batch_execution import BatchOutcome, each_batch
from batch_assets.graph.partitions import batch_partitions
from batch_assets.graph.pipeline_names import AssetKeys, endpoint_key, group_of, owners_of
from batch_assets.graph.signatures import with_known_signature
from batch_assets.graph.table_metadata import (
    answer_lineage,
    column_schema,
    failed_rows,
    open_pinned_documents,
    sample,
    table_metadata,
    totals,
)
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.resources.endpoints import EndpointsResource
from batch_assets.resources.spark import SparkResource
from batch_assets.settings import DEFAULT_PIPELINE, Settings
from batch_assets.sources.documents import open_documents
from batch_assets.staleness import Need, input_metadata, input_version, need_of
from batch_assets.tasks.configured_task import task_of
from batch_assets.tasks.output_tables import tables_of

if TYPE_CHECKING:
    from batch_assets.ai_functions.execution import Usage

_STATEMENT = """\
SELECT id, batch, ai_query('{endpoint}', request, failOnError => false) AS answer
FROM (
  SELECT id, batch,
    CONCAT({request}) AS request
  FROM {table}
  WHERE batch = '{batch}'
  ORDER BY id{limit}
)"""

# The talk's prompt.
_SUMMARY_REQUEST = "Based on the following document, provide a summary in less than 100 words. Document: {document}"


def statement_of(settings: Settings, batch: str) -> str:
    """The statement that answers a batch of a pipeline."""
    if settings.pipeline == DEFAULT_PIPELINE:
        prompt = _SUMMARY_REQUEST
    else:
        task = task_of(settings)
        prompt = settings.prompt or task.prompt
    before, _, after = prompt.partition("{document}")
    request = ", ".join(part for part in (_quoted(before), "document", _quoted(after)) if part)
    limit = f"\n  LIMIT {settings.ai_query_limit}" if settings.ai_query_limit else ""
    table = tables_of(settings).documents.name
    return _STATEMENT.format(endpoint=settings.endpoint, batch=batch, limit=limit, request=request, table=table)


def _quoted(text: str) -> str:
    """A text as a literal of Spark SQL, empty for an empty one."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'" if text else ""


def build_ai_query_inference(settings: Settings) -> dg.AssetsDefinition:
    """The asset of a pipeline's answers by an endpoint."""
    keys, tables, task = AssetKeys(settings.pipeline), tables_of(settings), task_of(settings)
    table, endpoint = tables.answered, settings.endpoint
    assert table is not None
    assert endpoint is not None
    lineage = answer_lineage(keys.documents, ("id", "batch"), table)

    @dg.asset(
        key=keys.answered,
        partitions_def=batch_partitions(settings.pipeline),
        deps=[keys.documents, endpoint_key(settings)],
        group_name=group_of(settings, "summaries"),
        owners=owners_of(settings),
        kinds={"deltalake", "spark", "sql"},
        code_version="1",
        pool="spark",
        description=table.description,
        metadata=column_schema(table),
    )
    @with_known_signature
    def ai_query_inference(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        spark: SparkResource,
        endpoints: EndpointsResource,
    ) -> dg.MaterializeResult[None]:
        """Run the SQL statement for each stale batch of the run."""
        output = lake.open(table)
        documents = open_pinned_documents(context, lake, settings)

        def query(batch: str) -> BatchOutcome:
            from batch_assets.ai_functions.execution import Usage, answer_batch

            statement = statement_of(settings, batch)
            parts = [statement, endpoints.describe(endpoint), *filter(None, [task.rules])]
            digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
            expected = {**input_metadata(documents, batch), "statement": digest}
            newest = open_documents(lake, settings, tables).version
            if need_of(output, batch, expected, newest, settings) is Need.NOTHING:
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
                endpoints.get(endpoint),
                statement,
                settings.ai_query_limit,
                {**expected, "endpoint": endpoint, "run_id": context.run.run_id},
                context.log.info,
                task.read if task.reads_answers else None,
                retry_errors=settings.retry_errors,
            )
            usage = answered.usage
            context.log.info(
                f"batch {batch}: {answered.rows} rows committed in {answered.seconds:.0f} s, {usage.requests} "
                f"requests, {answered.counts.errors} errors, {answered.counts.no_text} documents without text"
            )
            performance = {
                "documents_per_second": round(usage.requests / answered.seconds, 2),
                "median_seconds": usage.median_seconds,
                "slowest_seconds": usage.slowest_seconds,
            }
            return outcome(lake.open(table), batch, answered.version, statement, usage, performance)

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
                **table_metadata(lake, snapshot, batch, version, lineage),
                "input_version": documents_version,
                "endpoint": endpoint,
                "model": endpoints.describe(endpoint)["model"],
                "statement": dg.MetadataValue.md(f"```sql\n{statement}\n```"),
                "requests": usage.requests,
                "rows_reused": counts["summaries"] - usage.answers,
                **counts,
                **performance,
                **sample(
                    snapshot, batch, ["id", table.output_column, "prompt_tokens", "completion_tokens"], settings.samples
                ),
            }
            failures = failed_rows(snapshot, batch, counts["errors"], settings.error_attempts) if performance else {}
            return BatchOutcome(version, metadata, {keys.documents: documents_version}, failures)

        return each_batch(context, query)

    return ai_query_inference
