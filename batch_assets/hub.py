"""Whether anything configured comes from the Hugging Face hub."""

import os

from batch_assets.models.checkpoint import is_on_hub as is_model_on_hub
from batch_assets.settings import Settings
from batch_assets.sources.configured import is_on_hub as is_dataset_on_hub


def keep_off_the_hub(settings: Settings) -> None:
    """Stop the Hugging Face libraries from asking the hub when nothing configured comes from there."""
    datasets = [name for name in (settings.dataset, settings.evaluation_dataset) if name is not None]
    if not is_model_on_hub(settings.model) and not any(is_dataset_on_hub(name) for name in datasets):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
