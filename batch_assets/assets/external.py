"""Where lineage starts: what this graph reads and does not make."""

from collections.abc import Sequence

import dagster as dg

from batch_assets.settings import EMBEDDED_DATASET, EMBEDDED_ENDPOINT, EMBEDDED_MODEL, Settings

SOURCE_DATASET = dg.AssetKey("source_dataset")
BASE_CHECKPOINT = dg.AssetKey("base_checkpoint")
CHAT_ENDPOINT = dg.AssetKey("chat_endpoint")


def external_assets(settings: Settings) -> Sequence[dg.AssetSpec]:
    """Specs of the configured data set, checkpoint and endpoint."""
    what = {
        SOURCE_DATASET: (
            "Documents with summaries by people, as somebody else publishes them.",
            {"data set": settings.dataset, "split": settings.split},
            "aclsum" if settings.dataset == EMBEDDED_DATASET else "dataset",
        ),
        BASE_CHECKPOINT: (
            "The pretrained model that the graph starts from.",
            {"model": settings.model},
            "huggingface" if settings.model == EMBEDDED_MODEL else "checkpoint",
        ),
        CHAT_ENDPOINT: (
            "The OpenAI-compatible server that ai_query asks.",
            {"endpoint": settings.endpoint},
            "llamacpp" if settings.endpoint == EMBEDDED_ENDPOINT else "openai",
        ),
    }
    return [
        dg.AssetSpec(key, group_name="external", description=description, metadata=metadata, kinds={kind})
        for key, (description, metadata, kind) in what.items()
    ]
