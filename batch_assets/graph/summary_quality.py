"""Measures of the answers, for each batch, table and model version."""

from collections.abc import Sequence

import dagster as dg

from batch_assets.graph.batch_execution import BatchOutcome, each_batch
from batch_assets.graph.partitions import batch_partitions
from batch_assets.graph.pipeline_names import AssetKeys, group_of, owners_of
from batch_assets.graph.signatures import with_known_signature
from batch_assets.graph.table_metadata import (
    column_lineage,
    column_schema,
    open_pinned_documents,
    table_metadata,
)
from batch_assets.lake.contracts import PipelineTables
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.quality.batch_measures import quality_rows
from batch_assets.resources.spark import SparkResource
from batch_assets.settings import Settings
from batch_assets.staleness import input_version, is_stale, quality_input_metadata
from batch_assets.tasks.output_tables import measured_task, tables_of

# Columns that are not computed from a column of answers.
_DESCRIBING = ("table_name", "model_name", "model_version", "documents", "references", "measured_at")
# Figures in the metadata of a batch, beside the main score.
_SHOWN = ("rougeL", "compression")


def build_summary_quality(settings: Settings) -> dg.AssetsDefinition:
    """The asset of the measures of a pipeline's answers."""
    keys, tables, task = AssetKeys(settings.pipeline), tables_of(settings), measured_task(settings)
    answer_assets = [keys.scored, *([] if tables.answered is None else [keys.answered])]
    lineage = _lineage(keys, tables, answer_assets)
    shown = [figure.name for figure in task.figures if figure.name in _SHOWN or figure.name == task.main_score]

    @dg.asset(
        key=keys.quality,
        partitions_def=batch_partitions(settings.pipeline),
        deps=answer_assets,
        group_name=group_of(settings, "summaries"),
        owners=owners_of(settings),
        kinds={"deltalake", "spark"},
        code_version="1",
        pool="spark",
        description=tables.quality.description,
        metadata=column_schema(tables.quality),
    )
    @with_known_signature
    def summary_quality(
        context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake], spark: SparkResource
    ) -> dg.MaterializeResult[None]:
        """Measure the batches of the run whose answers have changed."""
        output = lake.open(tables.quality)
        scored = lake.open(tables.scored)
        answered = None if tables.answered is None else lake.open(tables.answered)
        documents = open_pinned_documents(context, lake, settings)

        def measure(batch: str) -> BatchOutcome:
            from batch_assets.quality.batch_measures import measure_tables

            expected = quality_input_metadata(scored, answered, batch)
            if not is_stale(output, batch, expected, scored.version):
                commit = output.last_commit(batch)
                assert commit is not None
                context.log.info(f"batch {batch}: up to date")
                return outcome(output, batch, commit.version)
            metadata = {**expected, "run_id": context.run.run_id}
            version = measure_tables(spark.session, documents, scored, answered, output, batch, task, metadata)
            context.log.info(f"batch {batch}: measured")
            return outcome(lake.open(tables.quality), batch, version)

        def outcome(snapshot: BatchSnapshot, batch: str, version: int) -> BatchOutcome:
            rows = quality_rows(snapshot, batch)
            figures = {
                f"{row['table_name']} {row['model_version'] or row['model_name']} {name}": round(row[name], 4)
                for row in rows
                for name in shown
                if row[name] is not None
            }
            inputs = {keys.scored: input_version(scored, batch)}
            if answered is not None:
                inputs[keys.answered] = input_version(answered, batch)
            metadata = {**table_metadata(lake, snapshot, batch, version, lineage), **figures}
            return BatchOutcome(version, metadata, inputs)

        return each_batch(context, measure)

    return summary_quality


def _lineage(keys: AssetKeys, tables: PipelineTables, answer_assets: Sequence[dg.AssetKey]) -> dg.TableColumnLineage:
    """The columns of answers and documents that each column of the quality table is computed from."""
    output = tables.scored.output_column
    special = {
        "batch": [(key, "batch") for key in answer_assets],
        "errors": [(key, "error_message") for key in answer_assets],
        "cut": [(key, "finish_reason") for key in answer_assets],
        "truncated": [(keys.scored, "input_truncated")],
        **{name: [(key, "id") for key in answer_assets] for name in ("best", "worst")},
    }
    computed = set(tables.quality.column_names) - set(_DESCRIBING)
    return column_lineage({name: special.get(name, [(key, output) for key in answer_assets]) for name in computed})
