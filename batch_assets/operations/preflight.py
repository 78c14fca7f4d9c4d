"""Checks that run before any asset is touched."""

import socket
from typing import TYPE_CHECKING

from batch_assets.ai_functions.endpoints import check_key, configured_endpoint
from batch_assets.engines.catalog import ENGINES
from batch_assets.errors import BatchAssetsError
from batch_assets.lake.lake import Lake
from batch_assets.models.checkpoint_sources import checkpoint_source
from batch_assets.models.tracking import connect, existing_client
from batch_assets.resources.java import check_java
from batch_assets.settings import Settings, named
from batch_assets.sources.configured import evaluation_dataset, scored_dataset
from batch_assets.sources.dataset import Dataset
from batch_assets.sources.documents import find_documents
from batch_assets.tasks.output_tables import tables_of

if TYPE_CHECKING:
    from batch_assets.models.registry import Version


def check_run(settings: Settings) -> Dataset:
    """Make sure that a run has what it needs.

    Returns:
        The data set to score.

    Raises:
        BatchAssetsError: Java, the model, the engine, the data set, the endpoint, the lake or the MLflow store is not
            available, or a shared model has no champion yet; no asset was touched.
    """
    check_java()
    check_pipeline(settings)
    if settings.shared_model is not None and shared_champion(settings) is None:
        raise BatchAssetsError(
            f"the pipeline {settings.shared_model}, whose model the pipeline {settings.pipeline} uses, has no champion "
            f"yet: run 'batch-assets run {settings.shared_model}' first"
        )
    lake = Lake.of(settings)
    for table in tables_of(settings).all:
        if lake.exists(table):
            lake.open(table)
    connect(settings)
    return scored_dataset(settings)


def check_pipeline(settings: Settings) -> None:
    """Make sure that a pipeline has its source, its model, its engine and its endpoint; creates nothing.

    Raises:
        BatchAssetsError: one of them is not available.
    """
    if settings.shared_model is None:
        checkpoint_source(settings).check()
    engine = ENGINES.get(settings.engine)
    if engine is not None and not engine.is_installed:
        raise BatchAssetsError(
            f"{named(settings, 'engine')}, {engine.name}, is not installed: run {engine.installation} first"
        )
    if settings.endpoint is not None:
        endpoint = configured_endpoint(settings.endpoints, settings.endpoint)
        if endpoint is not None:
            check_key(endpoint)
    scored_dataset(settings).check()
    if settings.is_in_place:
        find_documents(Lake.of(settings), settings, tables_of(settings)).batches()
    if settings.shared_model is None:
        evaluation_dataset(settings).held_out(1)


def shared_champion(settings: Settings) -> "Version | None":
    """The champion of a shared model; None if its owner has none yet.

    Raises:
        BatchAssetsError: the MLflow store can't be used.
    """
    from batch_assets.models.registry import CHAMPION, RegisteredModel

    client = existing_client(settings)
    return None if client is None else RegisteredModel.of(client, settings).with_alias(CHAMPION)


def check_port(port: int, setting: str) -> None:
    """Make sure that no program listens on a port of the loopback interface.

    Raises:
        BatchAssetsError: the port is in use.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BatchAssetsError(
                f"port {port} is in use ({error.strerror}): stop the program using it, or set {setting} to a free port"
            ) from error
