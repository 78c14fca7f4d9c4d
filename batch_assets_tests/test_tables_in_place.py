"""Pipelines over tables of other writers and over each other's output: the graph, on one session and one instance."""

from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake

from batch_assets.definitions import build_defs
from batch_assets.graph.partitions import register_batches
from batch_assets.graph.pipeline_names import MATERIALIZE_ALL
from batch_assets.lake.lake import Lake
from batch_assets.operations.local_runs import materialize
from batch_assets.pipelines.deployment import load_deployment
from batch_assets.settings import PREFIX, Settings
from batch_assets.tasks.output_tables import tables_of
from batch_assets_tests.conftest import SMALL_T5, write_json_lines
from batch_assets_tests.servers import ChatServer, completion
from batch_assets_tests.ticket_t5 import LABELS, tickets

TICKET_T5 = Path(__file__).with_name("ticket-t5")


def table(rows: list[dict], day: str) -> pa.Table:
    """Tickets as another job writes them, with ids that are numbers."""
    found = [{**row, "ticket_id": number, "opened_on": day} for number, row in enumerate(rows)]
    return pa.Table.from_pylist(found)


class InPlace:
    """A deployment whose pipelines read a table of another job, and the output of each other."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.source = folder / "home" / "lake" / "main" / "support" / "tickets"
        self.instance = instance

    def settings(self, pipeline: str) -> Settings:
        return load_deployment().pipeline(pipeline)

    def run(self, pipeline: str, job: str, batches: list[str]) -> list[str]:
        register_batches(self.instance, pipeline, batches)
        return materialize(build_defs(settings=self.settings(pipeline)), self.instance, pipeline, job, batches)

    def rows(self, pipeline: str, table: str, batch: str) -> list[dict]:
        settings = self.settings(pipeline)
        snapshot = Lake.of(settings).find(getattr(tables_of(settings), table))
        return [row for part in snapshot.read(batch) for row in part.to_pylist()]

    def metadata(self, pipeline: str, asset: str, batch: str) -> dict:
        key = dg.AssetKey([pipeline, asset])
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(key, asset_partitions=[batch]), limit=1
        ).records
        return {name: value.value for name, value in records[0].asset_materialization.metadata.items()}

    def tick(self, pipeline: str) -> list[list[str]]:
        """Batches of the runs that the sensor of the source requests."""
        definitions = build_defs(settings=self.settings(pipeline))
        sensor = definitions.get_sensor_def(f"{pipeline}_prod_data_sensor")
        with dg.build_sensor_context(instance=self.instance, definitions=definitions) as context:
            result = sensor(context)
        if isinstance(result, dg.SkipReason):
            return []
        return [[tag for name, tag in request.tags.items() if "range" in name] for request in result.run_requests]


@pytest.fixture(scope="module")
def server():
    with ChatServer(lambda body, n: completion("billing")) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory, server) -> Path:
    folder = tmp_path_factory.mktemp("in_place")
    (folder / "pipelines").mkdir()
    write_json_lines(folder / "held_out.jsonl", tickets(6, seed=4))
    (folder / "endpoints.toml").write_text(f'[endpoints.counted]\nbase_url = "{server.url}"\nmodel = "m"\n')
    files = {
        "tickets": {
            "source": {"table": "support.tickets", "batch_by": "opened_on"},
            "columns": {
                "id": "ticket_id",
                "text": "{subject}\n\n{body}",
                "reference": "category",
                "carry": ["customer"],
            },
            "task": {"kind": "classification", "labels": list(LABELS)},
            "model": {"checkpoint": str(TICKET_T5), "engine": "transformers"},
            "ai_query": {"endpoint": "counted", "limit": 2},
            "evaluation": {"dataset": "held_out.jsonl", "rows": 6},
            "output": {"table": "ticket_categories", "column": "category"},
        },
        "titles": {
            "source": {"pipeline": "tickets"},
            "task": {"kind": "generation", "prompt": "{document}"},
            "model": {"checkpoint": str(SMALL_T5), "max_length": 4, "engine": "transformers"},
            "evaluation": {"dataset": "held_out.jsonl", "rows": 2},
        },
    }
    files["titles"]["columns"] = {"reference": "reference"}
    for name, attributes in files.items():
        content = {"type": "batch_assets.InferencePipeline", "attributes": {"name": name, **attributes}}
        (folder / "pipelines" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(scope="module")
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def in_place(folder, instance, monkeypatch, spark) -> InPlace:
    values = {"HOME": folder / "home", "PIPELINES": folder / "pipelines", "ENDPOINTS": folder / "endpoints.toml"}
    for name, value in {**values, "SPARK_MASTER": "local[2,4]"}.items():
        monkeypatch.setenv(f"{PREFIX}{name}", str(value))
    deployment = InPlace(folder, instance)
    if not deployment.source.exists():
        write_deltalake(str(deployment.source), table(tickets(5, seed=1), "2026-01-01"))
        write_deltalake(str(deployment.source), table(tickets(4, seed=2), "2026-01-02"), mode="append")
        assert deployment.run("tickets", MATERIALIZE_ALL, ["2026-01-01", "2026-01-02"]) == []
    return deployment


def test_a_table_is_scored_in_place_by_model_and_by_endpoint_with_ids_and_columns_of_their_types(in_place, server):
    rows = sorted(in_place.rows("tickets", "scored", "2026-01-01"), key=lambda row: row["id"])
    expected = tickets(5, seed=1)
    assert [(row["id"], row["customer"], row["category"]) for row in rows] == [
        (n, row["customer"], row["category"]) for n, row in enumerate(expected)
    ]
    assert in_place.metadata("tickets", "batch_inference", "2026-01-02")["rows_scored"] == 4
    assert [row["id"] for row in in_place.rows("tickets", "answered", "2026-01-01")] == [0, 1]
    assert len(server.requests) == 4
    assert DeltaTable(str(in_place.source)).version() == 1
