"""What the assets, jobs, sensors and partitions of a pipeline are called; those of the default one have no prefix."""

import re
from collections.abc import Sequence

import dagster as dg

from batch_assets.settings import DEFAULT_PIPELINE, Settings

# The jobs of each pipeline.
MATERIALIZE_ALL, LAND_BATCHES, TAKE_FILES, SCORE_BATCHES, PROMOTE, ROLLBACK = JOBS = (
    "materialize_all",
    "land_batches",
    "take_files",
    "score_batches",
    "promote",
    "rollback",
)

# The op of TAKE_FILES, whose name is in its configuration.
TAKE_OP = "take"


class AssetKeys:
    """The keys of a pipeline's assets."""

    def __init__(self, pipeline: str) -> None:
        self._prefix: Sequence[str] = [] if pipeline == DEFAULT_PIPELINE else [pipeline]
        self.source = self._key("source_dataset")
        self.checkpoint = self._key("base_checkpoint")
        self.documents = self._key("prod_data")
        self.logged_model = self._key("logged_model")
        self.evaluation = self._key("model_evaluation")
        self.champion = self._key("champion_model")
        self.scored = self._key("batch_inference")
        self.answered = self._key("ai_query_inference")
        self.quality = self._key("summary_quality" if pipeline == DEFAULT_PIPELINE else "answer_quality")
        self.report = self._key("quality_report")

    def _key(self, name: str) -> dg.AssetKey:
        return dg.AssetKey([*self._prefix, name])

    def is_of_this_pipeline(self, key: dg.AssetKey) -> bool:
        """Whether an asset belongs to the pipeline."""
        return list(key.path[:-1]) == list(self._prefix)


def source_key(settings: Settings) -> dg.AssetKey:
    """The key of the asset that a pipeline's documents come from; pipelines that read the same table share it."""
    if settings.source_pipeline is not None:
        return AssetKeys(settings.source_pipeline).scored
    if settings.source_asset is not None:
        return dg.AssetKey(settings.source_asset.split("/"))
    if settings.is_table:
        place = settings.source_table or settings.source_url
        return dg.AssetKey(["source_tables", *filter(None, re.split(r"[^A-Za-z0-9_-]+", str(place)))])
    return AssetKeys(settings.pipeline).source


def champion_key(settings: Settings) -> dg.AssetKey:
    """The key of the champion that scores a pipeline's documents; it may be the one of another pipeline."""
    return AssetKeys(settings.model_owner).champion


def endpoint_key(settings: Settings) -> dg.AssetKey:
    """The key of the endpoint that a pipeline calls; pipelines that call the same one share it."""
    if settings.is_default:
        return dg.AssetKey("chat_endpoint")
    return dg.AssetKey(["chat_endpoints", str(settings.endpoint)])


def prefixed(pipeline: str, name: str) -> str:
    """The name of a job, a sensor or a schedule of a pipeline."""
    return name if pipeline == DEFAULT_PIPELINE else f"{pipeline}_{name}"


def group_of(settings: Settings, group: str) -> str:
    """The group of an asset: the default pipeline's assets are in several, those of another one in one of its own."""
    return group if settings.is_default else settings.pipeline


def owners_of(settings: Settings) -> list[str]:
    """The owners of a pipeline's assets."""
    return [owner.strip() for owner in settings.owners.split(",")]


def tag_of(settings: Settings, tag: str) -> str:
    """The name of a run tag of a pipeline."""
    return tag if settings.is_default else f"{tag}/{settings.pipeline}"
