"""External assets: the inputs that the graph reads but does not produce."""

import dagster as dg

from batch_assets.graph.pipeline_names import AssetKeys, endpoint_key, group_of, owners_of, source_key
from batch_assets.settings import EMBEDDED_DATASET, EMBEDDED_ENDPOINT, EMBEDDED_MODEL, Settings, redacted
from batch_assets.sources.documents import source_location


def external_assets(settings: Settings) -> list[dg.AssetSpec]:
    """Asset specs of a pipeline's source, checkpoint (unless its model is another pipeline's) and endpoint.

    Other pipelines may read the same table or call the same endpoint, so these are in the group external and have no
    owners. The output of another pipeline, and a table that an asset of the project writes, have assets already.
    """
    keys, group, owners = AssetKeys(settings.pipeline), group_of(settings, "external"), owners_of(settings)
    specs = []
    if settings.shared_model is None:
        specs.append(
            dg.AssetSpec(
                keys.checkpoint,
                group_name=group,
                description="Pretrained model that is logged, evaluated and registered.",
                metadata={"model": settings.model},
                owners=owners,
                kinds={"huggingface" if settings.model == EMBEDDED_MODEL else "checkpoint"},
            )
        )
    if settings.is_table and settings.source_asset is None:
        specs.append(
            dg.AssetSpec(
                source_key(settings),
                group_name="external",
                description="Delta table of another writer, read in place and never written.",
                metadata={"table": redacted(str(source_location(settings)))},
                kinds={"deltalake"},
            )
        )
    if not settings.is_in_place:
        if settings.dataset is None:
            source = {"landing folder": redacted(settings.landing_folder)}
        else:
            source = {"data set": settings.dataset, "split": settings.split}
        specs.append(
            dg.AssetSpec(
                keys.source,
                group_name=group,
                description="Source data set: documents, with reference answers by people if there are any.",
                metadata=source,
                owners=owners,
                kinds={"aclsum" if settings.dataset == EMBEDDED_DATASET else "dataset"},
            )
        )
    if settings.endpoint is not None:
        specs.append(
            dg.AssetSpec(
                endpoint_key(settings),
                group_name="external",
                description="OpenAI-compatible server that ai_query calls.",
                metadata={"endpoint": settings.endpoint},
                owners=owners if settings.is_default else None,
                kinds={"llamacpp" if settings.endpoint == EMBEDDED_ENDPOINT else "openai"},
            )
        )
    return specs
