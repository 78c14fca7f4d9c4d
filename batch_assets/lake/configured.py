"""The lake that settings name."""

from batch_assets.lake.lake import Lake
from batch_assets.settings import Settings


def configured_lake(settings: Settings) -> Lake:
    """The lake of the configured address, catalog and schema."""
    return Lake(settings.lake_uri, settings.catalog, settings.schema_name)
