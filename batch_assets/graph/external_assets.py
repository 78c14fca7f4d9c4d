"""External assets: the inputs that the graph reads but does not produce."""

from collections.abc import Sequence

import dagster as dg

from batch_assets.settings import EMBEDDED_DATASET, EMBEDDED_ENDPOINT, EMBEDDED_MODEL, Settings

SOURCE_DATASET = dg.AssetKey("source_dataset")
BASE_CHECKPOINT = dg.AssetKey("base_checkpoint")
CHAT_ENDPOINT = dg.AssetKey("chat_endpoint")


def external_assets(settings: Settings) -> Sequence[dg.AssetSpec]:
    """Asset specs of the configured data set, checkpoint and endpoint."""
    specs = {
        SOURCE_DATASET: (
            "Source data set: documents with human-written summaries.",
            {"data set": settings.dataset, "split": settings.split},
            "aclsum" if settings.dataset == EMBEDDED_DATASET else "dataset",
        ),
        BASE_CHECKPOINT: (
            "Pretrained model that is logged, evaluated and registered.",
            {"model": settings.model},
            "huggingface" if settings.model == EMBEDDED_MODEL else "checkpoint",
        ),
        CHAT_ENDPOINT: (
            "OpenAI-compatible server that ai_query calls.",
            {"endpoint": settings.endpoint},
            "llamacpp" if settings.endpoint == EMBEDDED_ENDPOINT else "openai",
        ),
    }
    return [
        dg.AssetSpec(key, group_name="external", description=description, metadata=metadata, kinds={kind})
        for key, (description, metadata, kind) in specs.items()
    ]
