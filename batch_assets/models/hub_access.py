"""Keep the Hugging Face libraries offline if nothing configured comes from the hub."""

import os

from batch_assets.models.checkpoint_sources import checkpoint_source
from batch_assets.settings import Settings
from batch_assets.sources.configured import is_on_hub


def go_offline(settings: Settings) -> None:
    """Set HF_HUB_OFFLINE unless the model or a data set comes from the Hugging Face hub."""
    datasets = [name for name in (settings.dataset, settings.evaluation_dataset) if name is not None]
    if not checkpoint_source(settings).is_on_hub and not any(is_on_hub(name) for name in datasets):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
