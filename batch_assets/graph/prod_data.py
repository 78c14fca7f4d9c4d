"""The documents of the source data set, one Delta partition per batch."""

from functools import cache

import dagster as dg

from batch_assets.errors import BatchAssetsError
from batch_assets.graph.batch_execution import BatchOutcome, each_batch, latest_data_version
from batch_assets.graph.partitions import batch_partitions
from batch_assets.graph.pipeline_names import AssetKeys, group_of, owners_of, source_key
from batch_assets.graph.signatures import with_known_signature
from batch_assets.graph.table_metadata import (
    column_lineage,
    column_schema,
    open_pinned_documents,
    sample,
    table_metadata,
)
from batch_assets.lake.lake import Lake
from batch_assets.settings import Settings
from batch_assets.sources.column_mapping import ColumnMapping
from batch_assets.sources.configured import landing_folder, scored_dataset
from batch_assets.sources.documents import source_name
from batch_assets.sources.landing import land_batch
from batch_assets.sources.landing_folder import LandedDataset
from batch_assets.staleness import input_version
from batch_assets.tasks.output_tables import tables_of


def build_prod_data(settings: Settings) -> dg.AssetsDefinition:
    """The asset of a pipeline's documents."""
    return _build_observed(settings) if settings.is_in_place else _build_landed(settings)


def _lineage(settings: Settings) -> dg.TableColumnLineage:
    """The columns of the source that each column of the documents is made from."""
    columns, source = ColumnMapping.of(settings), source_key(settings)
    sources = {"id": [columns.id], "document": columns.template.columns} | {name: [name] for name in columns.carry}
    if columns.reference is not None:
        sources[tables_of(settings).documents.reference_column] = [columns.reference]
    return column_lineage({name: [(source, one) for one in names] for name, names in sources.items()})


def _build_observed(settings: Settings) -> dg.AssetsDefinition:
    """The asset of documents in a table of another writer: a materialization records what is there."""
    keys, tables, source = AssetKeys(settings.pipeline), tables_of(settings), source_key(settings)
    lineage = _lineage(settings)
    # The output of another pipeline has the same batches, key for key.
    same = dg.IdentityPartitionMapping() if settings.source_pipeline is not None else None

    @dg.asset(
        key=keys.documents,
        partitions_def=batch_partitions(settings.pipeline),
        deps=[dg.AssetDep(source, partition_mapping=same)],
        group_name=group_of(settings, "data"),
        owners=owners_of(settings),
        kinds={"deltalake"},
        code_version="1",
        description=f"Documents in {source_name(settings)}, which is read in place and never written.",
        metadata=column_schema(tables.documents),
    )
    @with_known_signature
    def prod_data(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> dg.MaterializeResult[None]:
        """Record the version of each batch of the run."""
        documents = open_pinned_documents(context, lake, settings)

        def observe(batch: str) -> BatchOutcome:
            version = input_version(documents, batch)
            context.log.info(f"batch {batch}: {documents.rows(batch)} documents in version {version} of the source")
            metadata = {
                **table_metadata(lake, documents, batch, version, lineage),
                "dagster/table_name": settings.source_table or documents.uri,
                **sample(documents, batch, ["id", "document", tables.documents.reference_column], settings.samples),
            }
            upstream = latest_data_version(context.instance, source, batch if same else None)
            return BatchOutcome(version, metadata, {} if upstream is None else {source: upstream})

        return each_batch(context, observe)

    return prod_data


def _build_landed(settings: Settings) -> dg.AssetsDefinition:
    keys, tables, lineage = AssetKeys(settings.pipeline), tables_of(settings), _lineage(settings)

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
