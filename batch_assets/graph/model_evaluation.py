"""Scores of the logged model on held-out documents."""

import dagster as dg

from batch_assets.graph.pipeline_names import AssetKeys, group_of, owners_of
from batch_assets.graph.signatures import with_known_signature
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings
from batch_assets.sources.configured import evaluation_dataset
from batch_assets.sources.dataset import digest_documents


def build_model_evaluation(settings: Settings) -> dg.AssetsDefinition:
    """The asset of the evaluation of a pipeline's logged model."""
    keys = AssetKeys(settings.pipeline)

    @dg.asset(
        key=keys.evaluation,
        deps=[keys.logged_model, keys.source],
        group_name=group_of(settings, "model"),
        owners=owners_of(settings),
        kinds={"mlflow", "python"},
        code_version="1",
        description="Scores of the newest logged model and of the baselines on held-out documents, logged to the "
        "model's run.",
    )
    @with_known_signature
    def model_evaluation(
        context: dg.AssetExecutionContext,
        registry: dg.ResourceParam[ModelRegistry],
    ) -> dg.MaterializeResult[None]:
        """Evaluate the newest logged model, unless it was already evaluated on the same documents."""
        from batch_assets.engines.catalog import IsolatedEngine
        from batch_assets.models.evaluation import evaluate
        from batch_assets.models.model_runs import newest_run
        from batch_assets.models.registry import run_model
        from batch_assets.tasks.configured_task import task_of

        registry = registry.of(settings)
        dataset = evaluation_dataset(settings)
        documents = dataset.held_out(settings.evaluation_rows)
        run = newest_run(registry.client, settings)
        task = task_of(settings)

        evaluation = evaluate(
            registry.client,
            run,
            task,
            documents,
            dataset.name,
            digest_documents(documents),
            lambda: IsolatedEngine(run_model(run, settings)),
            settings.samples,
            context.log.info,
        )
        metrics = evaluation.metrics
        low, high = metrics[f"{task.main_score}_low"], metrics[f"{task.main_score}_high"]
        context.log.info(
            f"{task.main_score} {metrics[task.main_score]:.3f} ({low:.3f} to {high:.3f}) on {len(documents)} documents "
            f"of {dataset.name}"
        )
        return dg.MaterializeResult(
            metadata={
                **{name: round(value, 4) for name, value in evaluation.metrics.items()},
                "documents": len(documents),
                "data_set": dataset.name,
                "new": evaluation.is_new,
                "mlflow_run": dg.MetadataValue.url(registry.run_page(run.run_id)),
            },
            data_version=dg.DataVersion(f"{run.run_id}-{digest_documents(documents)[:16]}"),
        )

    return model_evaluation
