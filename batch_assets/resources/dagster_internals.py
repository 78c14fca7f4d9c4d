"""Private names of Dagster that this package uses because the public interface lacks them.

A test fails when a new version of Dagster changes them.
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_selection import KeysAssetSelection
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    DEFAULT_DATA_VERSION,
    NULL_EVENT_POINTER,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.runs import InMemoryRunStorage, SqliteRunStorage
from dagster._core.storage.sqlite import LAST_KNOWN_STAMPED_SQLITE_ALEMBIC_REVISION
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG as RANGE_END_TAG,
)
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_START_TAG as RANGE_START_TAG,
)
from dagster._core.storage.tags import PARTITION_NAME_TAG

__all__ = [
    "CODE_VERSION_TAG",
    "DATA_VERSION_IS_USER_PROVIDED_TAG",
    "DATA_VERSION_TAG",
    "DEFAULT_DATA_VERSION",
    "LAST_KNOWN_STAMPED_SQLITE_ALEMBIC_REVISION",
    "NULL_EVENT_POINTER",
    "PARTITION_NAME_TAG",
    "RANGE_END_TAG",
    "RANGE_START_TAG",
    "SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION",
    "DagsterSqliteStorage",
    "InMemoryRunStorage",
    "SqliteRunStorage",
    "UnresolvedAssetJobDefinition",
    "asset_job",
    "get_input_data_version_tag",
    "get_input_event_pointer_tag",
]


class _KeysJob(UnresolvedAssetJobDefinition):
    """A job of a few assets. Dagster resolves a job by walking through all assets of the code location."""

    def resolve(self, asset_graph: AssetGraph, *others: Any, **more: Any) -> dg.JobDefinition:
        """Resolve the job against its own assets, their checks and what they depend on."""
        assert isinstance(self.selection, KeysAssetSelection)
        return super().resolve(_around(asset_graph, self.selection.selected_keys), *others, **more)


def asset_job(
    name: str, keys: Sequence[dg.AssetKey], *, executor: dg.ExecutorDefinition, description: str
) -> UnresolvedAssetJobDefinition:
    """A job of assets, as ``define_asset_job`` returns it, that resolves in a time that depends on these assets only.

    With a thousand pipelines of three such jobs, Dagster's own way takes many minutes.
    """
    selection = dg.AssetSelection.assets(*keys)
    # The tags are those of define_asset_job without any; the snapshot of a job has them.
    return _KeysJob(name, selection, executor_def=executor, description=description, tags={})


def _around(graph: AssetGraph, keys: Sequence[dg.AssetKey]) -> AssetGraph:
    """The part of a graph that has some assets, their checks, and everything that these are connected to."""
    nodes = [graph.get(key) for key in keys if graph.has(key)]
    checks = {check for node in nodes for check in node.check_keys}
    definitions = [*(node.assets_def for node in nodes), *graph.assets_defs_for_keys(checks)]
    connected = {
        key
        for definition in definitions
        for key in (
            *definition.keys,
            *definition.node_keys_by_input_name.values(),
            *definition.node_keys_by_output_name.values(),
        )
    }
    return AssetGraph(
        {key: graph.get(key) for key in connected if graph.has(key)},
        {check: definition for definition in definitions for check in definition.check_keys},
    )
