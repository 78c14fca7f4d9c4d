"""The documents: one Delta partition a batch, from the source data set."""

from functools import cache

import dagster as dg

from batch_assets.assets._batches import DoneBatch, each_batch
from batch_assets.assets._tables import column_lineage, column_schema, sample, table_metadata
from batch_assets.assets.external import SOURCE_DATASET
from batch_assets.automation.partitions import BATCHES
from batch_assets.errors import BatchAssetsError
from batch_assets.lake.lake import Lake
from batch_assets.lake.tables import PROD_DATA
from batch_assets.settings import Settings
from batch_assets.sources.configured import landing_folder, scored_dataset
from batch_assets.sources.landing import land_batch
from batch_assets.sources.landing_folder import LandedDataset

_LINEAGE = column_lineage({name: [(SOURCE_DATASET, name)] for name in ("id", "document", "summary")})


@dg.asset(
    partitions_def=BATCHES,
    deps=[SOURCE_DATASET],
    group_name="data",
    kinds={"deltalake", "python"},
    code_version="1",
    description=PROD_DATA.description,
    metadata=column_schema(PROD_DATA),
)
def prod_data(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], lake: dg.ResourceParam[Lake]
) -> dg.MaterializeResult[None]:
    """Land each batch of the run, or find that it is there already."""
    configured = cache(lambda: scored_dataset(settings))
    folder = landing_folder(settings)
    dropped: LandedDataset | None = None

    def land(batch: str) -> DoneBatch:
        nonlocal dropped
        dropped = folder.dataset_of(batch, dropped)
        dataset = dropped or configured()
        landed = land_batch(dataset, lake, batch, context.run.run_id)
        if landed.observed and dropped is not None:
            raise BatchAssetsError(
                f"the batch {batch} holds rows of another writer, which are never replaced: drop the files of "
                f"{dropped.name} under another name"
            )
        if landed.observed:
            state = "written by somebody else, only observed"
        elif landed.changed:
            state = f"{landed.rows} documents landed, {landed.rejected} records rejected"
        else:
            state = f"up to date with its source, {landed.rows} documents"
        context.log.info(f"batch {batch}: {state}")
        snapshot = lake.open(PROD_DATA)
        metadata = {
            **table_metadata(lake, snapshot, batch, landed.version, _LINEAGE),
            "rejected": landed.rejected,
            "changed": landed.changed,
            **sample(snapshot, batch, ["id", "document", "summary"], settings.samples),
        }
        return DoneBatch(landed.version, metadata)

    return each_batch(context, land)
