"""The registered version that has the alias champion."""

from typing import Any

import dagster as dg

from batch_assets.assets._tables import markdown_sample
from batch_assets.assets.external import SOURCE_DATASET
from batch_assets.assets.model_evaluation import model_evaluation
from batch_assets.automation.promotion import POOL
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings
from batch_assets.sources.configured import evaluation_dataset


@dg.asset(
    deps=[model_evaluation, SOURCE_DATASET],
    group_name="model",
    kinds={"mlflow"},
    code_version="2",
    pool=POOL,
    description="The run that settings select, registered as a version. It becomes the champion if it loads, "
    "summarizes two documents on one node, and is not worse than the champion on the held-out documents; else the "
    "champion stays. The data version is the champion's number.",
)
def champion_model(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    registry: dg.ResourceParam[ModelRegistry],
) -> dg.MaterializeResult[None]:
    """Find the run, register it, propose the version."""
    from batch_assets.models.promotion import SAMPLE, propose
    from batch_assets.models.registry import CHAMPION, prepare_engine, register
    from batch_assets.models.runs import TASK_TAG, find_run
    from batch_assets.models.samples import kept_samples
    from batch_assets.models.task import task_of

    client = registry.client
    score = task_of(settings).main_score
    run = find_run(client, settings)
    scores = {name: run.metrics[name] for name in (score, f"lead_{score}") if name in run.metrics}
    tags: dict[str, str] = {
        "task": run.tags[TASK_TAG],
        "checkpoint": run.tags["batch_assets.checkpoint"],
        "data_set": settings.dataset,
        **{name: f"{value:.4f}" for name, value in scores.items()},
    }
    candidate, is_new = register(client, settings.registered_model, run, tags)
    documents = evaluation_dataset(settings).held_out(settings.evaluation_rows)
    proposal = propose(client, settings, candidate, documents, context.log.info)
    champion, decision = proposal.champion, proposal.decision
    # Also where nothing was promoted: another engine or precision may be wanted now.
    conversion = prepare_engine(client, champion, settings, documents, context.log.info)
    metadata: dict[str, Any] = {
        "model": champion.name,
        "version": champion.number,
        "alias": CHAMPION,
        "candidate": candidate.number,
        "new": is_new,
        "decision": "it is the champion already" if decision is None else decision.reason,
        "selected_by": settings.select_by,
        **({} if conversion is None else {"engine": conversion}),
        **registry.version_link(champion.name, champion.number),
        "mlflow_run": dg.MetadataValue.url(registry.run_page(champion.run_id)),
        **{name: round(value, 4) for name, value in scores.items()},
    }
    if settings.samples:
        kept = kept_samples(client, champion.run_id, SAMPLE)[: settings.samples]
        metadata["single_node_inference"] = markdown_sample(kept, ["id", "document", "generated_summary"])
    return dg.MaterializeResult(
        metadata=metadata,
        data_version=dg.DataVersion(str(champion.number)),
    )
