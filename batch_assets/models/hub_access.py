"""Keep the Hugging Face libraries offline if nothing configured comes from the hub."""

import os
from collections.abc import Sequence

from batch_assets.models.checkpoint_sources import checkpoint_source
from batch_assets.settings import Settings
from batch_assets.sources.configured import is_on_hub


def go_offline(pipelines: Sequence[Settings]) -> None:
    """Set HF_HUB_OFFLINE unless a model or a data set comes from the Hugging Face hub."""
    if not any(map(_uses_hub, pipelines)):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _uses_hub(settings: Settings) -> bool:
    datasets = [name for name in (settings.dataset, settings.evaluation_dataset) if name is not None]
    return checkpoint_source(settings).is_on_hub or any(is_on_hub(name) for name in datasets)
