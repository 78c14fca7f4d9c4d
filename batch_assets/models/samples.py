"""A few documents with what a model wrote for them, kept with its run so that they can be shown again."""

import json
from typing import Any


def keep_samples(client: Any, run_id: str, name: str, rows: list[dict[str, Any]]) -> None:
    """Write rows of text to ``samples/<name>.json`` of a run."""
    client.log_text(run_id, json.dumps(rows, indent=1, ensure_ascii=False), f"samples/{name}.json")


def kept_samples(client: Any, run_id: str, name: str) -> list[dict[str, Any]]:
    """The rows that were kept, none if there are none."""
    path = f"samples/{name}.json"
    if path not in {item.path for item in client.list_artifacts(run_id, "samples")}:
        return []
    import mlflow

    uri = f"{client.get_run(run_id).info.artifact_uri}/{path}"
    rows: list[dict[str, Any]] = json.loads(mlflow.artifacts.load_text(uri))
    return rows
