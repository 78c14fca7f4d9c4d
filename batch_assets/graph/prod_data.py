"""The documents of the source data set, one Delta partition per batch."""

from functools import cache

import dagster as dg

from batch_assets.errors import BatchAssetsError
from batch_assets.graph.batch_execution import BatchOutcome, each_batch
from batch_assets.graph.partitions import batch_partitions
from batch_assets.graph.pipeline_names import AssetKeys, group_of, owners_of
from batch_assets.graph.signatures import with_known_signature
from batch_assets.graph.table_metadata import column_lineage, column_schema, sample, table_metadata
from batch_assets.lake.lake import Lake
from batch_assets.settings import Settings
from batch_assets.sources.column_mapping import ColumnMapping
from batch_assets.sources.configured import landing_folder, scored_dataset
from batch_assets.sources.landing import land_batch
from batch_assets.sources.landing_folder import LandedDataset
from batch_assets.tasks.output_tables import tables_of


def build_prod_data(settings: Settings) -> dg.AssetsDefinition:
    """The asset of a pipeline's documents."""
    keys, tables, columns = AssetKeys(settings.pipeline), tables_of(settings), ColumnMapping.of(settings)
    sources = {"id": [columns.id], "document": columns.template.columns} | {name: [name] for name in columns.carry}
    if columns.reference is not None:
        sources[tables.documents.reference_column] = [columns.reference]
    lineage = column_lineage({name: [(keys.source, one) for one in names] for name, names in sources.items()})

    @dg.asset(
        key=keys.documents,
        partitions_def=batch_partitions(settings.pipeline),
        deps=[keys.source],
        group_name=group_of(settings, "data"),
        owners=owners_of(settings),
        kinds={"deltalake", "python"},
        code_version="1",
        description=tables.documents.description,
        metadata=column_schema(tables.documents),
    )
    @with_known_signature
    def prod_data(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> dg.MaterializeResult[None]:
        """Land each batch of the run that is new or has changed."""
        configured = cache(lambda: scored_dataset(settings))
        folder = landing_folder(settings) if settings.is_landing else None
        from_folder: LandedDataset | None = None

        def land(batch: str) -> BatchOutcome:
            nonlocal from_folder
            from_folder = None if folder is None else folder.dataset_of(batch, from_folder)
            dataset = from_folder or configured()
            landed = land_batch(dataset, lake, tables, batch, context.run.run_id)
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
            snapshot = lake.open(tables.documents)
            metadata = {
                **table_metadata(lake, snapshot, batch, landed.version, lineage),
                "rejected": landed.rejected,
                "changed": landed.changed,
                **sample(snapshot, batch, ["id", "document", tables.documents.reference_column], settings.samples),
            }
            return BatchOutcome(landed.version, metadata)

        return each_batch(context, land)

    return prod_data
