"""Serve the Dagster UI of a home on free ports, and query its GraphQL."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from string import Template
from typing import Any

import httpx

from batch_assets.settings import Settings
from tools.ports import free_port


@contextmanager
def served(environment: Mapping[str, str]) -> Iterator[str]:
    """Serve ``batch-assets ui``; yields the address of Dagster."""
    port = free_port()
    ports = {"BATCH_ASSETS_UI_PORT": str(port), "BATCH_ASSETS_MLFLOW_PORT": str(free_port())}
    with _served([sys.executable, "-m", "batch_assets", "ui"], {**environment, **ports}, port) as url:
        yield url


@contextmanager
def webserver(settings: Settings) -> Iterator[str]:
    """Serve only Dagster's pages, without a daemon that would start runs; yields their address."""
    port = free_port()
    command = [sys.executable, "-m", "dagster_webserver", "--module-name", "batch_assets.definitions"]
    places = {"BATCH_ASSETS_HOME": str(settings.home), "DAGSTER_HOME": str(settings.dagster_home)}
    address = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    with _served([*command, *address], {**os.environ, **places}, port) as url:
        yield url


@contextmanager
def _served(command: Sequence[str], environment: Mapping[str, str], port: int) -> Iterator[str]:
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while not _answers(url):
            if server.poll() is not None:
                raise RuntimeError(f"the UI ended with status {server.returncode}; its last lines are above")
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/server_info", timeout=5).is_success
    except httpx.TransportError:
        return False


def graphql(url: str, query: str, **variables: Any) -> Any:
    """Send a query to Dagster, and return its answer."""
    answer = httpx.post(f"{url}/graphql", json={"query": query, "variables": variables}, timeout=60)
    answer.raise_for_status()
    said = answer.json()
    if said.get("errors"):
        raise RuntimeError(f"Dagster refuses a query: {said['errors'][0]['message']}")
    return said["data"]


# The queries about batches that an asset's page sends in Dagster 1.13: PartitionHealth, AssetGraphLive,
# AssetStaleStatusData, AssetHealth, RecentAssetEvents and AssetPartitionStale.
_PARTITION_HEALTH, *_OTHERS = (
    Template(query)
    for query in (
        """{ assetNodeOrError(assetKey: $key) { ... on AssetNode {
            partitionKeysByDimension { name partitionKeys }
            assetPartitionStatuses { ... on DefaultPartitionStatuses {
                materializedPartitions materializingPartitions failedPartitions } } } } }""",
        """{ assetNodes(assetKeys: [$key], loadMaterializations: true) {
            assetMaterializations(limit: 1) { timestamp runId stepKey }
            assetObservations(limit: 1) { timestamp runId stepKey }
            assetChecksOrError { ... on AssetChecks { checks {
                name executionForLatestMaterialization { status evaluation { severity } } } } }
            partitionStats { numMaterialized numMaterializing numPartitions numFailed } }
        assetsLatestInfo(assetKeys: [$key]) {
            unstartedRunIds inProgressRunIds latestRun { id status startTime endTime } } }""",
        "{ assetNodes(assetKeys: [$key]) { staleStatus staleCauses { key { path } reason category } } }",
        """{ assetsOrError(assetKeys: [$key]) { ... on AssetConnection { nodes { assetHealth {
            assetHealth materializationStatus assetChecksStatus freshnessStatus } } } } }""",
        """{ assetOrError(assetKey: $key) { ... on Asset {
            assetEventHistory(limit: 100, eventTypeSelectors: [MATERIALIZATION, OBSERVATION, FAILED_TO_MATERIALIZE]) {
                results {
                    ... on MaterializationEvent { partition timestamp runId metadataEntries { label description } }
                    ... on ObservationEvent { partition timestamp runId metadataEntries { label description } }
                } } } } }""",
        """{ assetNodeOrError(assetKey: $key) { ... on AssetNode {
            staleStatus(partition: "$batch")
            staleCauses(partition: "$batch") { key { path } reason category }
            latestMaterializationByPartition(partitions: ["$batch"]) { timestamp runId metadataEntries { label } }
        } } }""",
    )
)


def asset_page(url: str, asset: str, batch: str) -> int:
    """Send the queries of an asset's page one after another. Returns the number of materialized batches."""
    values = {"key": f'{{path: ["{asset}"]}}', "batch": batch}
    node = graphql(url, _PARTITION_HEALTH.substitute(values))["assetNodeOrError"]
    for query in _OTHERS:
        graphql(url, query.substitute(values))
    return len(node["assetPartitionStatuses"]["materializedPartitions"])
