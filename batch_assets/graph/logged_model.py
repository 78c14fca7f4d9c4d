"""The configured checkpoint as an MLflow model."""

from typing import Any

import dagster as dg

from batch_assets.graph.pipeline_names import AssetKeys, group_of, owners_of
from batch_assets.graph.signatures import with_known_signature
from batch_assets.graph.table_metadata import markdown_sample
from batch_assets.models.checkpoint_sources import checkpoint_source
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import Settings
from batch_assets.sources.configured import evaluation_dataset, scored_dataset
from batch_assets.tasks.configured_task import task_of


def build_logged_model(settings: Settings) -> dg.AssetsDefinition:
    """The asset of a pipeline's logged model."""
    keys = AssetKeys(settings.pipeline)

    @dg.asset(
        key=keys.logged_model,
        deps=[keys.checkpoint, keys.source],
        group_name=group_of(settings, "model"),
        owners=owners_of(settings),
        kinds={"mlflow", "huggingface"},
        code_version="1",
        description="The checkpoint as a transformers pipeline, logged to an MLflow experiment with its parameters, "
        "signature, example, requirements and model card.",
    )
    @with_known_signature
    def logged_model(
        context: dg.AssetExecutionContext,
        registry: dg.ResourceParam[ModelRegistry],
    ) -> dg.MaterializeResult[None]:
        """Log the model unless the same model is already logged."""
        from batch_assets.models.logged import EXAMPLE, log_checkpoint
        from batch_assets.models.samples import kept_samples

        registry = registry.of(settings)
        example = evaluation_dataset(settings).held_out(1)[0].document or ""
        logged = log_checkpoint(
            registry.client,
            settings,
            checkpoint_source(settings).load(),
            scored_dataset(settings),
            example,
            context.log.info,
        )
        metadata: dict[str, Any] = {
            "mlflow_run": dg.MetadataValue.url(registry.run_page(logged.run.run_id)),
            "mlflow_model": dg.MetadataValue.url(registry.model_page(logged.run)),
            "model_uri": logged.run.model_uri,
            "checkpoint": logged.run.tags["batch_assets.checkpoint"],
            "digest": logged.run.digest,
            "new": logged.is_new,
            "parameters": dg.MetadataValue.json(logged.parameters),
        }
        if settings.samples:
            rows = kept_samples(registry.client, logged.run.run_id, EXAMPLE)
            metadata["sample"] = markdown_sample(rows, ["document", task_of(settings).output_column])
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(logged.run.run_id))

    return logged_model
