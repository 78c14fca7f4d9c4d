"""What can be known to be wrong before any asset is touched."""

import socket

from batch_assets.ai_functions.endpoints import check_key, configured_endpoint
from batch_assets.errors import BatchAssetsError
from batch_assets.inference.engines import OPENVINO, is_installed
from batch_assets.java import check_java
from batch_assets.lake.configured import configured_lake
from batch_assets.lake.tables import TABLES
from batch_assets.models.checkpoint import check_checkpoint
from batch_assets.models.tracking import connect
from batch_assets.settings import Settings
from batch_assets.sources.configured import evaluation_dataset, scored_dataset
from batch_assets.sources.dataset import Dataset


def check_run(settings: Settings) -> Dataset:
    """Make sure that a run has what it needs.

    Returns:
        The data set that is to be scored.

    Raises:
        BatchAssetsError: Java, the model, the engine, the data set, the endpoint, the lake or the MLflow store can't be
            had; no asset was touched.
    """
    check_java()
    check_checkpoint(settings)
    if settings.engine == OPENVINO and not is_installed(OPENVINO):
        raise BatchAssetsError("BATCH_ASSETS_ENGINE=openvino: run pip install 'batch_assets[openvino]' first")
    endpoint = configured_endpoint(settings.endpoints, settings.endpoint)
    if endpoint is not None:
        check_key(endpoint)
    lake = configured_lake(settings)
    for table in TABLES:
        if lake.exists(table):
            lake.open(table)
    connect(settings)
    dataset = scored_dataset(settings)
    dataset.check()
    evaluation_dataset(settings).held_out(1)
    return dataset


def check_port(port: int, setting: str) -> None:
    """Make sure that nobody listens on a port of the loopback interface.

    Raises:
        BatchAssetsError: somebody does.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BatchAssetsError(
                f"port {port} is taken ({error.strerror}): stop what listens there, or set {setting} to a free one"
            ) from error
