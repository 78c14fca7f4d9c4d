"""The data sets that the settings name."""

from batch_assets.errors import BatchAssetsError
from batch_assets.settings import EMBEDDED_DATASET, SUMMARIZATION, TASKS, Settings, named
from batch_assets.sources.aclsum import ACLSumDataset
from batch_assets.sources.column_mapping import XSUM_COLUMNS, ColumnMapping
from batch_assets.sources.dataset import Dataset, NoDataset
from batch_assets.sources.documents import source_name
from batch_assets.sources.files import FileDataset, is_local_name
from batch_assets.sources.hub import HubDataset
from batch_assets.sources.landing_folder import LandingFolder

# Small batches for the embedded data set, so that a first run shows several.
_EMBEDDED_BATCH_ROWS = 25
_BATCH_ROWS = 1000


def scored_dataset(settings: Settings) -> Dataset:
    """The data set to score.

    Raises:
        BatchAssetsError: the data set does not exist.
    """
    if settings.dataset is None:
        return NoDataset(source_name(settings) if settings.is_in_place else "the landing folder")
    return _open(settings, settings.dataset, settings.split, settings.limit)


def landing_folder(settings: Settings) -> LandingFolder:
    """The configured landing folder."""
    archives = settings.landed_files == "archive"
    rows = settings.batch_rows or _BATCH_ROWS
    columns = ColumnMapping.of(settings)
    return LandingFolder(settings.landing_folder, rows, archives, settings.home / "locks", columns)


def evaluation_dataset(settings: Settings) -> Dataset:
    """The data set that models are evaluated on; never the split that is scored.

    Files have no validation split. Without BATCH_ASSETS_EVALUATION_DATASET, models that summarize are then evaluated on
    the embedded data set.

    Raises:
        BatchAssetsError: the data set does not exist, or none is named.
    """
    name = settings.evaluation_dataset
    if name is None and settings.dataset is not None and not is_local_name(settings.dataset):
        name = settings.dataset
    if name is None:
        if settings.task in TASKS and settings.task != SUMMARIZATION:
            raise BatchAssetsError(
                f"the pipeline {settings.pipeline} has no held-out documents to evaluate its model on: name them in "
                "evaluation.dataset"
            )
        name = EMBEDDED_DATASET
    other = "test" if (name, settings.split) == (settings.dataset, "validation") else "validation"
    split = settings.evaluation_split or other
    if (name, split) == (settings.dataset, settings.split):
        raise BatchAssetsError(
            f"{named(settings, 'evaluation_split')} is {split}, which is scored: evaluate on another split"
        )
    return _open(settings, name, split, None)


def is_on_hub(name: str) -> bool:
    """Whether the name refers to a data set on the Hugging Face hub."""
    return name != EMBEDDED_DATASET and not is_local_name(name)


def _open(settings: Settings, name: str, split: str, limit: int | None) -> Dataset:
    columns = ColumnMapping.of(settings)
    if name == EMBEDDED_DATASET:
        # Files with other columns are evaluated on it too.
        fits = set(columns.template.columns) <= {XSUM_COLUMNS.text}
        rows = settings.batch_rows or _EMBEDDED_BATCH_ROWS
        return ACLSumDataset(split, rows, limit, columns if fits else XSUM_COLUMNS)
    rows = settings.batch_rows or _BATCH_ROWS
    if is_local_name(name):
        return FileDataset(name, rows, limit, columns)
    config = settings.dataset_config if name == settings.dataset else None
    return HubDataset(name, split, settings.home / "datasets", rows, limit, columns, config)
