"""The registered version that has the alias champion."""

from typing import Any

import dagster as dg

from batch_assets.assets._tables import markdown_sample
from batch_assets.assets.external import SOURCE_DATASET
from batch_assets.assets.model_evaluation import model_evaluation
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings
from batch_assets.sources.configured import evaluation_dataset

_SAMPLE = "single_node_inference"
_SAMPLE_DOCUMENTS = 2


@dg.asset(
    deps=[model_evaluation, SOURCE_DATASET],
    group_name="model",
    kinds={"mlflow"},
    code_version="1",
    pool="promotion",
    description="The run that settings select, registered as a version and given the alias champion after it has "
    "summarized two documents. The data version is the version's number.",
)
def champion_model(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    registry: dg.ResourceParam[ModelRegistry],
) -> dg.MaterializeResult[None]:
    """Find the run, register it, try the version on one node, promote it."""
    from batch_assets.models.registry import CHAMPION, predict, prepare_engine, promote, register, with_alias
    from batch_assets.models.runs import find_run
    from batch_assets.models.samples import keep_samples, kept_samples

    run = find_run(registry.client, settings)
    tags: dict[str, str] = {
        "task": settings.task,
        "checkpoint": run.tags["batch_assets.checkpoint"],
        "data_set": settings.dataset,
        **{name: f"{run.metrics[name]:.4f}" for name in ("rouge1", "lead_rouge1") if name in run.metrics},
    }
    version, is_new = register(registry.client, settings.registered_model, run, tags)
    held_out = evaluation_dataset(settings).held_out(settings.evaluation_rows)
    conversion = prepare_engine(registry.client, version, settings, held_out, context.log.info)
    metadata: dict[str, Any] = {
        "model": version.name,
        "version": version.number,
        "alias": CHAMPION,
        "new": is_new,
        "selected_by": settings.select_by,
        **({} if conversion is None else {"engine": conversion}),
        "version_page": dg.MetadataValue.url(registry.version_page(version.name, version.number)),
        "mlflow_run": dg.MetadataValue.url(registry.run_page(run.run_id)),
        **{name: round(run.metrics[name], 4) for name in ("rouge1", "lead_rouge1") if name in run.metrics},
    }
    champion = with_alias(registry.client, version.name, CHAMPION)
    if champion is not None and champion.number == version.number:
        context.log.info(f"version {version.number} of {version.name} is the champion already")
    else:
        documents = evaluation_dataset(settings).held_out(_SAMPLE_DOCUMENTS)
        summaries = predict(version, [item.document or "" for item in documents])
        old = promote(registry.client, version)
        was = f", version {old.number} is now previous" if old else ""
        context.log.info(f"version {version.number} of {version.name} is the champion{was}")
        if settings.samples:
            rows = [
                {"id": item.id, "document": item.document, "generated_summary": summary}
                for item, summary in zip(documents, summaries, strict=True)
            ]
            keep_samples(registry.client, run.run_id, _SAMPLE, rows)
    if settings.samples:
        kept = kept_samples(registry.client, run.run_id, _SAMPLE)
        metadata["single_node_inference"] = markdown_sample(kept, ["id", "document", "generated_summary"])
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(str(version.number)))
