"""Start again from the current rows of a table that a pipeline reads commit by commit."""

from batch_assets.errors import BatchAssetsError
from batch_assets.lake.lake import Lake
from batch_assets.lake.snapshot import Snapshot
from batch_assets.settings import COMMIT, Settings
from batch_assets.sources.documents import source_location
from batch_assets.tasks.output_tables import tables_of


def rebase(settings: Settings) -> int:
    """Make the current rows of the source the first batches; the next run removes the answers to earlier batches.

    Returns:
        The version of the source from which its commits are batches.

    Raises:
        BatchAssetsError: the pipeline does not batch by commit, or its source can't be read.
    """
    location = source_location(settings)
    if location is None or settings.batch_by != COMMIT:
        raise BatchAssetsError(
            f"the pipeline {settings.pipeline} does not read a table commit by commit (source.batch_by: {COMMIT})"
        )
    lake = Lake.of(settings)
    source = Snapshot.open(location, lake.storage_options)
    lake.open(tables_of(settings).scored).rebase(source.table_id, source.version)
    return source.version
