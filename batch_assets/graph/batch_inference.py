"""One answer for every document, written by the champion on Spark."""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import dagster as dg

from batch_assets.graph.batch_execution import BatchOutcome, each_batch
from batch_assets.graph.partitions import batch_partitions, known_batches
from batch_assets.graph.pipeline_names import AssetKeys, champion_key, group_of, owners_of, tag_of
from batch_assets.graph.signatures import with_known_signature
from batch_assets.graph.table_metadata import (
    answer_lineage,
    column_schema,
    failed_rows,
    open_pinned_documents,
    pin_number,
    sample,
    table_metadata,
    totals,
)
from batch_assets.lake.commit_log import Commit
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.resources.registry import ModelRegistry
from batch_assets.resources.spark import SparkResource
from batch_assets.scoring.completions import CompletionStore
from batch_assets.settings import Settings, named
from batch_assets.sources.documents import open_documents
from batch_assets.staleness import MODEL, Need, input_metadata, input_version, need_of
from batch_assets.tasks.output_tables import tables_of

if TYPE_CHECKING:
    from batch_assets.scoring.scorer import ScoredBatch

CHAMPION_TAG = "batch_assets/champion_version"


def build_batch_inference(settings: Settings) -> dg.AssetsDefinition:
    """The asset of a pipeline's answers by the registered model."""
    keys, tables, champion_asset = AssetKeys(settings.pipeline), tables_of(settings), champion_key(settings)
    table, model_name = tables.scored, settings.registered_model
    lineage = answer_lineage(keys.documents, tables.documents.column_names, table)

    @dg.asset(
        key=keys.scored,
        partitions_def=batch_partitions(settings.pipeline),
        deps=[keys.documents, champion_asset],
        group_name=group_of(settings, "summaries"),
        owners=owners_of(settings),
        kinds={"deltalake", "spark", "huggingface"},
        code_version="1",
        pool="spark",
        description=table.description,
        metadata=column_schema(table),
    )
    @with_known_signature
    def batch_inference(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[Lake],
        registry: dg.ResourceParam[ModelRegistry],
        spark: SparkResource,
    ) -> dg.MaterializeResult[None]:
        """Score the stale batches of the run with the champion; failed rows are retried with their batch's version."""
        from batch_assets.models.registry import CHAMPION, scoring_model
        from batch_assets.scoring.scorer import score_batch

        output, registered = lake.open(table), registry.model(settings)
        number = pin_number(context, tag_of(settings, CHAMPION_TAG), lambda: registered.champion().number)
        documents = open_pinned_documents(context, lake, settings)
        model_of = cache(lambda wanted: scoring_model(registry.client, registered.version(wanted), settings))
        known = known_batches(context.instance, settings.pipeline)
        rescored = {"all": known, "latest": known[-1:], "none": []}[settings.rescore]

        def is_unchanged(commit: Commit) -> bool:
            """Whether requests of a batch would be the same as when it was scored."""
            scored_by = commit.metadata["model_version"]
            if commit.metadata.get(MODEL, model_name) != model_name:
                return False
            if scored_by not in {version.number for version in registered.versions()}:
                return False
            return bool(model_of(scored_by).fingerprint == commit.metadata.get("fingerprint"))

        def score(batch: str) -> BatchOutcome:
            expected = input_metadata(documents, batch)
            if batch in rescored:
                expected |= {MODEL: model_name, "model_version": number, "fingerprint": model_of(number).fingerprint}
            need = need_of(output, batch, expected, open_documents(lake, settings, tables).version, settings)
            used, commit = number, output.last_commit(batch)
            if need is not Need.EVERYTHING:
                assert commit is not None
                scored_by = commit.metadata["model_version"]
                if need is Need.NOTHING:
                    hint = (
                        ""
                        if scored_by == number
                        else f" (the champion is {number}; {named(settings, 'rescore')} decides)"
                    )
                    context.log.info(f"batch {batch}: up to date, scored by version {scored_by}{hint}")
                    return outcome(output, batch, commit.version, scored_by, 0, {})
                # All rows of a batch have the same version and settings.
                used = scored_by
                if not is_unchanged(commit):
                    context.log.warning(
                        f"batch {batch}: failed rows are not requested again, because version {scored_by} was deleted "
                        "or the settings have changed: score the whole batch with 'batch-assets rescore'"
                    )
                    return outcome(output, batch, commit.version, scored_by, 0, {})
                context.log.info(f"batch {batch}: requesting failed rows again with version {used}")
            model = model_of(used)
            store = CompletionStore.of(lake, table, batch, model.fingerprint)
            recorded = {
                **expected,
                MODEL: model_name,
                "model_version": used,
                "fingerprint": model.fingerprint,
                "engine": model.engine,
                "engine_reason": model.engine_reason,
                "dtype": model.dtype,
                "run_id": context.run.run_id,
            }
            scored = score_batch(
                spark.session,
                documents,
                output,
                batch,
                model,
                store,
                recorded,
                report=context.log.info,
                retry_errors=settings.retry_errors,
            )
            context.log.info(
                f"batch {batch}: {scored.rows} rows committed in {scored.seconds:.0f} s, {scored.scored} scored with "
                f"version {used}, {scored.counts.errors} errors, {scored.counts.no_text} documents without text"
            )
            performance = {
                "documents_per_second": round(scored.scored / scored.seconds, 2),
                **_worker_metadata(scored),
            }
            return outcome(lake.open(table), batch, scored.version, used, scored.scored, performance)

        def outcome(
            snapshot: BatchSnapshot,
            batch: str,
            version: int,
            scored_by: int,
            scored: int,
            performance: Mapping[str, Any],
        ) -> BatchOutcome:
            commit = snapshot.last_commit(batch)
            recorded = {} if commit is None else commit.metadata
            documents_version = input_version(documents, batch)
            counts = totals(snapshot, batch)
            written_by = recorded.get(MODEL, model_name)
            metadata = {
                **table_metadata(lake, snapshot, batch, version, lineage),
                "input_version": documents_version,
                "model": written_by,
                "model_version": scored_by,
                **({"alias": CHAMPION} if (written_by, scored_by) == (model_name, number) else {}),
                **registry.version_link(written_by, scored_by),
                **{key: recorded[key] for key in ("engine", "engine_reason", "dtype") if key in recorded},
                "rows_scored": scored,
                "rows_reused": snapshot.rows(batch) - scored - counts["no_text"],
                **performance,
                **counts,
                **sample(
                    snapshot, batch, ["id", "document", table.reference_column, table.output_column], settings.samples
                ),
            }
            inputs: dict[dg.AssetKey, int | str] = {keys.documents: documents_version, champion_asset: scored_by}
            failures = failed_rows(snapshot, batch, counts["errors"], settings.error_attempts) if performance else {}
            return BatchOutcome(version, metadata, inputs, failures)

        return each_batch(context, score)

    return batch_inference


def _worker_metadata(scored: "ScoredBatch") -> dict[str, Any]:
    workers = scored.workers
    if workers is None:
        return {}
    return {
        "workers": workers.processes,
        "model_loads": workers.loads,
        "model_load_seconds": round(workers.load_seconds, 1),
        "worker_mebibytes": round(workers.mebibytes),
    }
