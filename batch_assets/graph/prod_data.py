"""The documents of the source data set, one Delta partition per batch."""

from functools import cache

import dagster as dg

from batch_assets.errors import BatchAssetsError
from batch_assets.graph.batch_execution import BatchOutcome, each_batch
from batch_assets.graph.external_assets import SOURCE_DATASET
from batch_assets.graph.partitions import BATCHES
from batch_assets.graph.table_metadata import column_lineage, column_schema, sample, table_metadata
from batch_assets.lake.contracts import PROD_DATA
from batch_assets.lake.lake import Lake
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
    """Land each batch of the run that is new or has changed."""
    configured = cache(lambda: scored_dataset(settings))
    folder = landing_folder(settings)
    from_folder: LandedDataset | None = None

    def land(batch: str) -> BatchOutcome:
        nonlocal from_folder
        from_folder = folder.dataset_of(batch, from_folder)
        dataset = from_folder or configured()
        landed = land_batch(dataset, lake, batch, context.run.run_id)
        if landed.observed and from_folder is not None:
            raise BatchAssetsError(
                f"batch {batch} contains rows from another writer, which are never replaced; drop the files of "
                f"{from_folder.name} into the landing folder under another name"
            )
        if landed.observed:
            state = "written by another writer, left unchanged"
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
        return BatchOutcome(landed.version, metadata)

    return each_batch(context, land)
