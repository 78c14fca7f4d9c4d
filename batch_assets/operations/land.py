"""Land files by hand, without waiting for a sensor."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from batch_assets.errors import BatchAssetsError
from batch_assets.graph.partitions import register_batches
from batch_assets.graph.pipeline_names import LAND_BATCHES
from batch_assets.lake.contracts import PipelineTables
from batch_assets.lake.lake import Lake
from batch_assets.operations.local_runs import materialize
from batch_assets.resources.dagster_storage import open_instance
from batch_assets.settings import Settings
from batch_assets.sources.configured import landing_folder
from batch_assets.sources.documents import source_name
from batch_assets.tasks.output_tables import tables_of


@dataclass(frozen=True)
class LandedFiles:
    """A batch that files became, with its rejected records by reason."""

    batch: str
    documents: int
    rejected: int
    reasons: dict[str, int]


def land_files(
    settings: Settings, definitions: Callable[[Settings], dg.Definitions], files: Sequence[Path], batch: str | None
) -> tuple[list[LandedFiles], list[str]]:
    """Copy files into the landing folder and land them as one batch, or several if they are large.

    Args:
        settings: the deployment.
        definitions: builds its definitions.
        files: the files.
        batch: name of the batch, by default that of the files.

    Returns:
        What landed, and what failed.

    Raises:
        BatchAssetsError: a file can't be used, the batch would replace another one, or the pipeline has no landing
            folder.
    """
    if not settings.is_landing:
        source = source_name(settings) if settings.is_in_place else "a data set"
        raise BatchAssetsError(f"the pipeline {settings.pipeline} has no landing folder: its source is {source}")
    folder = landing_folder(settings)
    name = folder.name_for(files, batch)
    # Two commands that land the same batch take turns, so that each finds its own copies of the files.
    with folder.lock(name):
        folder.take_copies(files, name, replaces=batch is not None)
        batches = folder.keys_of(name)
        with open_instance(settings) as instance:
            register_batches(instance, settings.pipeline, batches)
            failures = materialize(definitions(settings), instance, settings.pipeline, LAND_BATCHES, batches)
        if failures:
            return [], failures
        landed = _landed(Lake.of(settings), tables_of(settings), batches)
        folder.mark_requested(name)
        return landed, []


def _landed(lake: Lake, tables: PipelineTables, batches: Sequence[str]) -> list[LandedFiles]:
    documents, rejected = lake.open(tables.documents), lake.open(tables.rejected)
    found = []
    for batch in batches:
        reasons = Counter(row["reason"] for part in rejected.read(batch, ["reason"]) for row in part.to_pylist())
        found.append(LandedFiles(batch, documents.rows(batch), reasons.total(), dict(reasons.most_common())))
    return found
