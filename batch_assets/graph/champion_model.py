"""The registered model version with the alias ``champion``."""

from typing import Any

import dagster as dg

from batch_assets.graph.pipeline_names import AssetKeys, group_of, owners_of
from batch_assets.graph.signatures import with_known_signature
from batch_assets.graph.table_metadata import markdown_sample
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings
from batch_assets.sources.configured import evaluation_dataset, scored_dataset

# Shared with the promotion jobs, so that only one promotion runs at a time.
PROMOTION_POOL = "promotion"


def build_champion_model(settings: Settings) -> dg.AssetsDefinition:
    """The asset of a pipeline's champion."""
    keys = AssetKeys(settings.pipeline)

    @dg.asset(
        key=keys.champion,
        deps=[keys.evaluation, keys.source],
        group_name=group_of(settings, "model"),
        owners=owners_of(settings),
        kinds={"mlflow"},
        code_version="2",
        pool=PROMOTION_POOL,
        description="The model version with the alias champion. The run that the settings select is registered, and "
        "promoted if it loads, scores two documents on one node, and is not worse than the champion on the held-out "
        "documents. Otherwise the champion stays. The data version is the champion's version number.",
    )
    @with_known_signature
    def champion_model(
        context: dg.AssetExecutionContext,
        registry: dg.ResourceParam[ModelRegistry],
    ) -> dg.MaterializeResult[None]:
        """Register the selected run as a version, and propose it as champion."""
        from batch_assets.models.model_runs import TASK_TAG, find_run
        from batch_assets.models.overview import baseline_names
        from batch_assets.models.promotion import SAMPLE, promotion_lock, propose
        from batch_assets.models.registry import CHAMPION, prepare_engine
        from batch_assets.models.samples import kept_samples
        from batch_assets.tasks.configured_task import task_of

        registry = registry.of(settings)
        client, model = registry.client, registry.model(settings)
        task = task_of(settings)
        score = task.main_score
        run = find_run(client, settings)
        scores = {
            name: run.metrics[name] for name in (score, *baseline_names(task, run.metrics)[:1]) if name in run.metrics
        }
        tags: dict[str, str] = {
            "task": run.tags[TASK_TAG],
            "checkpoint": run.tags["batch_assets.checkpoint"],
            "data_set": scored_dataset(settings).name if settings.dataset is None else settings.dataset,
            **{name: f"{value:.4f}" for name, value in scores.items()},
        }
        documents = evaluation_dataset(settings).held_out(settings.evaluation_rows)
        with promotion_lock(settings, context.log.info):
            candidate, is_new = model.register(run, tags)
            proposal = propose(model, settings, candidate, documents, context.log.info)
            champion, decision = proposal.champion, proposal.decision
            # Needed even if nothing was promoted: the settings may now name another engine or precision.
            conversion = prepare_engine(client, champion, settings, documents, context.log.info)
        metadata: dict[str, Any] = {
            "model": champion.name,
            "version": champion.number,
            "alias": CHAMPION,
            "candidate": candidate.number,
            "new": is_new,
            "decision": "already the champion" if decision is None else decision.reason,
            "selected_by": settings.select_by,
            **({} if conversion is None else {"engine": conversion}),
            **registry.version_link(champion.name, champion.number),
            "mlflow_run": dg.MetadataValue.url(registry.run_page(champion.run_id)),
            **{name: round(value, 4) for name, value in scores.items()},
        }
        if settings.samples:
            sample_rows = kept_samples(client, champion.run_id, SAMPLE)[: settings.samples]
            metadata["single_node_inference"] = markdown_sample(sample_rows, ["id", "document", task.output_column])
        return dg.MaterializeResult(
            metadata=metadata,
            data_version=dg.DataVersion(str(champion.number)),
        )

    return champion_model
