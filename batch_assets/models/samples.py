"""Samples: a few documents with a model's output, stored with its run so that they can be shown later."""

import json
from typing import Any

from batch_assets.mlflow_client import MlflowClient


def keep_samples(client: MlflowClient, run_id: str, name: str, rows: list[dict[str, Any]]) -> None:
    """Write rows of text to ``samples/<name>.json`` of a run."""
    client.log_text(run_id, json.dumps(rows, indent=1, ensure_ascii=False), f"samples/{name}.json")


def kept_samples(client: MlflowClient, run_id: str, name: str) -> list[dict[str, Any]]:
    """The stored rows, or an empty list."""
    path = f"samples/{name}.json"
    if path not in {item.path for item in client.list_artifacts(run_id, "samples")}:
        return []
    import mlflow

    uri = f"{client.get_run(run_id).info.artifact_uri}/{path}"
    rows: list[dict[str, Any]] = json.loads(mlflow.artifacts.load_text(uri))
    return rows
