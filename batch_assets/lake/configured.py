"""The lake that settings name."""

from batch_assets.lake.lake import Lake
from batch_assets.settings import Settings

# delta-rs would ask a lake that is out of reach for three minutes.
_SOON = {"max_retries": "1", "retry_timeout": "5s", "timeout": "5s", "connect_timeout": "5s"}


def configured_lake(settings: Settings, *, soon: bool = False) -> Lake:
    """The lake of the configured address, catalog and schema; ``soon`` gives one up that is out of reach."""
    options = _SOON if soon and "://" in settings.lake_uri else {}
    return Lake(settings.lake_uri, settings.catalog, settings.schema_name, options)
