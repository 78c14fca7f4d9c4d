"""Sensor ticks on large tables."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from batch_assets.lake.contracts import BATCH_INFERENCE, PROD_DATA, Table
from batch_assets_tests.test_automation import Deployment

pytestmark = pytest.mark.proof

BATCHES, UNSEEN, SECONDS = 10_000, 5_000, 2.0


def commits(uri: str) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a table's log, and the actions of its latest commit."""
    log = Path(uri) / "_delta_log"
    newest = sorted(log.glob("*.json"))[-1]
    return log, [json.loads(line) for line in newest.read_text().splitlines()]


def repeat(deployment: Deployment, table: Table, batches: int, *, input_version: bool) -> None:
    """Copy a table's latest commit for many other batches: a tick only reads the log."""
    log, actions = commits(deployment.lake.table_uri(table))
    text = "\n".join(json.dumps(action) for action in actions)
    first = deployment.lake.open(table).version
    for number in range(1, batches):
        lines = text.replace("template", f"b{number:05}")
        if input_version:
            changed = [json.loads(line) for line in lines.splitlines()]
            for action in changed:
                if "commitInfo" in action:
                    action["commitInfo"]["batch_assets.input_version"] += number
            lines = "\n".join(json.dumps(action) for action in changed)
        (log / f"{first + number:020}.json").write_text(lines)
    DeltaTable(deployment.lake.table_uri(table)).create_checkpoint()


def append_unseen(deployment: Deployment) -> None:
    uri = deployment.lake.table_uri(PROD_DATA)
    log = Path(uri) / "_delta_log"
    first = deployment.lake.open(PROD_DATA).version + 1
    for number in range(UNSEEN):
        add = {
            "path": f"batch=b{number + 1:05}/theirs-{number}.parquet",
            "partitionValues": {"batch": f"b{number + 1:05}"},
            "size": 1000,
            "modificationTime": 1,
            "dataChange": True,
            "stats": '{"numRecords": 1}',
        }
        actions = [{"commitInfo": {"operation": "WRITE", "engineInfo": "theirs"}}, {"add": add}]
        (log / f"{first + number:020}.json").write_text("\n".join(json.dumps(action) for action in actions))
    DeltaTable(uri).create_checkpoint()


def test_a_tick_takes_less_than_two_seconds_with_10000_batches_and_5000_unseen_commits(
    home, monkeypatch, record_property
):
    deployment = Deployment(home, monkeypatch)
    deployment.land("template")
    deployment.score("template")
    repeat(deployment, PROD_DATA, BATCHES, input_version=False)
    repeat(deployment, BATCH_INFERENCE, BATCHES, input_version=True)

    def tick(what: str) -> int:
        began = time.monotonic()
        requests = deployment.tick("prod_data_sensor")
        seconds[what] = round(time.monotonic() - began, 2)
        return len(requests)

    seconds: dict[str, float] = {}
    assert tick("first, which registers all batches") == 0
    assert tick("nothing new") == 0
    append_unseen(deployment)
    assert tick("with unseen commits") > 0
    print(seconds)
    record_property("seconds of ticks", json.dumps(seconds))
    assert seconds["nothing new"] < SECONDS
    assert seconds["with unseen commits"] < SECONDS
