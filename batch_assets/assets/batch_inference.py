"""One summary for every document, scored on Spark with the champion."""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import dagster as dg

from batch_assets.assets._batches import DoneBatch, each_batch
from batch_assets.assets._tables import (
    column_lineage,
    column_schema,
    pinned,
    pinned_documents,
    sample,
    table_metadata,
    totals,
)
from batch_assets.assets.champion_model import champion_model
from batch_assets.assets.prod_data import prod_data
from batch_assets.automation.partitions import BATCHES
from batch_assets.automation.stale import input_of, input_version, is_stale
from batch_assets.inference.completions import CompletionStore
from batch_assets.lake.lake import BatchSnapshot, Lake
from batch_assets.lake.tables import BATCH_INFERENCE, PROD_DATA
from batch_assets.resources.registry import ModelRegistry
from batch_assets.resources.spark import SparkResource
from batch_assets.settings import Settings

if TYPE_CHECKING:
    from batch_assets.inference.scorer import ScoredBatch

CHAMPION_TAG = "batch_assets/champion_version"

_WRITTEN = (
    "generated_summary",
    "error_message",
    "finish_reason",
    "input_tokens",
    "output_tokens",
    "input_truncated",
    "request_hash",
)
_LINEAGE = column_lineage(
    {
        **{name: [(prod_data.key, name)] for name in PROD_DATA.column_names},
        **{name: [(prod_data.key, "document")] for name in _WRITTEN},
    }
)


@dg.asset(
    partitions_def=BATCHES,
    deps=[prod_data, champion_model],
    group_name="summaries",
    kinds={"deltalake", "spark", "huggingface"},
    code_version="1",
    pool="spark",
    description=BATCH_INFERENCE.description,
    metadata=column_schema(BATCH_INFERENCE),
)
def batch_inference(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    lake: dg.ResourceParam[Lake],
    registry: dg.ResourceParam[ModelRegistry],
    spark: SparkResource,
) -> dg.MaterializeResult[None]:
    """Score the batches of the run that are stale, with one version of the model for all of them."""
    from batch_assets.inference.scorer import score_batch
    from batch_assets.models.registry import CHAMPION, champion, get_version, scoring_model

    output = lake.open(BATCH_INFERENCE)
    number = pinned(context, CHAMPION_TAG, lambda: champion(registry.client, settings).number)
    documents = pinned_documents(context, lake)
    model = cache(lambda: scoring_model(registry.client, get_version(registry.client, settings, number), settings))
    known = context.instance.get_dynamic_partitions(str(BATCHES.name))
    rescored = {"all": known, "latest": known[-1:], "none": []}[settings.rescore]

    def score(batch: str) -> DoneBatch:
        expected = input_of(documents, batch)
        if batch in rescored:
            expected |= {"model_version": number, "fingerprint": model().fingerprint}
        if not is_stale(output, batch, expected, lake.open(PROD_DATA).version):
            commit = output.last_commit(batch)
            assert commit is not None
            by = commit.metadata["model_version"]
            hint = "" if by == number else f" (the champion is {number}; BATCH_ASSETS_RESCORE=all scores again)"
            context.log.info(f"batch {batch}: up to date, scored by version {by}{hint}")
            return _done(output, batch, commit.version, by, 0, {})
        store = CompletionStore.of(lake, BATCH_INFERENCE, batch, model().fingerprint)
        recorded = {
            **expected,
            "model_version": number,
            "fingerprint": model().fingerprint,
            "engine": model().engine,
            "engine_reason": model().engine_reason,
            "dtype": model().dtype,
            "run_id": context.run.run_id,
        }
        scored = score_batch(spark.session, documents, output, batch, model(), store, recorded, report=context.log.info)
        context.log.info(
            f"batch {batch}: {scored.rows} rows committed in {scored.seconds:.0f} s, {scored.scored} scored with "
            f"version {number}, {scored.counts.errors} errors, {scored.counts.no_text} documents without text"
        )
        figures = {
            "documents_per_second": round(scored.scored / scored.seconds, 2),
            **_workers(scored),
        }
        return _done(lake.open(BATCH_INFERENCE), batch, scored.version, number, scored.scored, figures)

    def _done(
        snapshot: BatchSnapshot, batch: str, version: int, by: int, scored: int, figures: Mapping[str, Any]
    ) -> DoneBatch:
        commit = snapshot.last_commit(batch)
        recorded = {} if commit is None else commit.metadata
        made_from = input_version(documents, batch)
        counted = totals(snapshot, batch, ("input_tokens", "output_tokens"))
        metadata = {
            **table_metadata(lake, snapshot, batch, version, _LINEAGE),
            "input_version": made_from,
            "model": settings.registered_model,
            "model_version": by,
            **({"alias": CHAMPION} if by == number else {}),
            **registry.version_link(settings.registered_model, by),
            **{key: recorded[key] for key in ("engine", "engine_reason", "dtype") if key in recorded},
            "rows_scored": scored,
            "rows_reused": snapshot.rows(batch) - scored - counted["no_text"],
            **figures,
            **counted,
            **sample(snapshot, batch, ["id", "document", "summary", "generated_summary"], settings.samples),
        }
        return DoneBatch(version, metadata, {prod_data.key: made_from, champion_model.key: by})

    return each_batch(context, score)


def _workers(scored: "ScoredBatch") -> dict[str, Any]:
    workers = scored.workers
    if workers is None:
        return {}
    return {
        "workers": workers.processes,
        "model_loads": workers.loads,
        "model_load_seconds": round(workers.load_seconds, 1),
        "worker_mebibytes": round(workers.mebibytes),
    }
