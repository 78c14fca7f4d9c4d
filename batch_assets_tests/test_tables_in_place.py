"""Pipelines over tables of other writers and over each other's output: the graph, on one session and one instance."""

import shutil
from pathlib import Path

import dagster as dg
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from deltalake import DeltaTable, write_deltalake

from batch_assets import Pipeline, build_pipeline
from batch_assets.cli import main
from batch_assets.definitions import build_defs
from batch_assets.errors import BatchAssetsError
from batch_assets.graph.partitions import known_batches, register_batches
from batch_assets.graph.pipeline_names import LAND_BATCHES, MATERIALIZE_ALL, SCORE_BATCHES
from batch_assets.lake.lake import Lake
from batch_assets.operations.local_runs import materialize
from batch_assets.operations.status import batches_in
from batch_assets.resources.registry import ModelRegistry
from batch_assets_tests.conftest import write_json_lines
from batch_assets_tests.pipeline_deployment import PipelineDeployment, write_deployment
from batch_assets_tests.servers import ChatServer, completion
from batch_assets_tests.ticket_t5 import LABELS, tickets

TICKET_T5 = Path(__file__).with_name("ticket-t5")


def table(rows: list[dict], day: str) -> pa.Table:
    """Tickets as another job writes them, with ids that are numbers."""
    found = [{**row, "ticket_id": number, "opened_on": day} for number, row in enumerate(rows)]
    return pa.Table.from_pylist(found)


class InPlace(PipelineDeployment):
    """A deployment whose pipelines read a table of another job, and the output of each other."""

    @property
    def source(self) -> Path:
        return self.folder / "home" / "lake" / "main" / "support" / "tickets"

    def tick(self, pipeline: str) -> list[list[str]]:
        """First and last batch of the runs that the sensor of the documents requests."""
        settings = self.settings(pipeline)
        repository = build_defs(settings=settings).get_repository_def()
        resources = {"lake": Lake.of(settings), "registry": ModelRegistry(settings)}
        context = dg.build_sensor_context(instance=self.instance, repository_def=repository, resources=resources)
        result = repository.get_sensor_def(f"{pipeline}_prod_data_sensor").evaluate_tick(context)
        return [
            [request.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end")]
            for request in result.run_requests or ()
        ]


@pytest.fixture(scope="module")
def server():
    with ChatServer(lambda body, n: completion("billing")) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory, server) -> Path:
    folder = tmp_path_factory.mktemp("in_place")
    write_json_lines(folder / "held_out.jsonl", tickets(6, seed=4))
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
        "again": {
            "source": {"pipeline": "tickets"},
            "columns": {"reference": "reference", "carry": ["customer"]},
            "model": {"pipeline": "tickets"},
        },
    }
    write_deployment(folder, server, files)
    return folder


@pytest.fixture(scope="module")
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def in_place(folder, instance, monkeypatch, spark) -> InPlace:
    deployment = InPlace(folder, instance, monkeypatch)
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


def test_commits_of_other_writers_are_noticed_by_the_sensor_and_scored_exactly_once(in_place):
    assert in_place.tick("tickets") == []
    pl.DataFrame(table(tickets(2, seed=3), "2026-01-03")).write_delta(str(in_place.source), mode="append")
    assert in_place.tick("tickets") == [["2026-01-03", "2026-01-03"]]
    assert in_place.run("tickets", SCORE_BATCHES, ["2026-01-03"]) == []
    assert in_place.metadata("tickets", "batch_inference", "2026-01-03")["rows_scored"] == 2
    DeltaTable(str(in_place.source)).update({"body": "'The invoice is wrong'"}, predicate="customer = 'none'")
    DeltaTable(str(in_place.source)).optimize.compact()
    assert in_place.tick("tickets") == []
    DeltaTable(str(in_place.source)).update(
        {"body": "'The invoice is wrong'"}, predicate="ticket_id = 1 AND opened_on = '2026-01-01'"
    )
    # After the compaction, all rows are in one file, so any batch may have changed; one row has another text.
    assert in_place.tick("tickets") == [["2026-01-01", "2026-01-03"]]
    assert in_place.run("tickets", SCORE_BATCHES, known_batches(in_place.instance, "tickets")) == []
    scored = [in_place.metadata("tickets", "batch_inference", f"2026-01-0{day}")["rows_scored"] for day in (1, 2, 3)]
    assert scored == [1, 0, 0]
    assert in_place.tick("tickets") == []


def test_a_chain_scores_the_answers_of_the_other_pipeline_batch_for_batch_with_its_model(in_place):
    write_deltalake(
        str(in_place.source), table([{**tickets(1, seed=5)[0], "subject": None, "body": None}], "none"), mode="append"
    )
    in_place.run("tickets", SCORE_BATCHES, ["none"])
    batches = in_place.tick("again")
    assert batches == [["2026-01-01", "none"]]
    days = known_batches(in_place.instance, "again")
    assert in_place.run("again", SCORE_BATCHES, days) == []
    for day in days:
        upstream = {row["id"]: row["category"] for row in in_place.rows("tickets", "scored", day)}
        rows = in_place.rows("again", "scored", day)
        assert {row["id"]: row["document"] for row in rows} == upstream
        assert {row["customer"] for row in rows} <= {row["customer"] for row in in_place.rows("tickets", "scored", day)}
    (failed,) = in_place.rows("again", "scored", "none")
    assert (failed["document"], failed["label"], failed["error_message"]) == (None, None, "the document has no text")
    assert in_place.metadata("again", "batch_inference", "none")["rows_scored"] == 0
    assert in_place.metadata("again", "batch_inference", "2026-01-01")["model"] == "main.default.tickets"


def test_a_deleted_batch_goes_from_the_answers_and_then_from_those_of_the_chain(in_place):
    if in_place.tick("again"):
        in_place.run("again", SCORE_BATCHES, known_batches(in_place.instance, "again"))
    DeltaTable(str(in_place.source)).delete("opened_on = '2026-01-02'")
    for pipeline in ("tickets", "again"):
        days = known_batches(in_place.instance, pipeline)
        assert in_place.tick(pipeline) != []
        assert in_place.run(pipeline, SCORE_BATCHES, days) == []
        assert in_place.rows(pipeline, "scored", "2026-01-02") == []
        assert in_place.tick(pipeline) == []
        states = {
            batch.batch: batch.state for batch in batches_in(in_place.instance, in_place.settings(pipeline), None)
        }
        assert states["2026-01-02"] == "empty"


def test_an_unreachable_table_is_an_error_of_its_pipeline_and_leaves_the_others(in_place):
    hidden = in_place.source.with_name("hidden")
    before = in_place.rows("tickets", "scored", "2026-01-01")
    shutil.move(in_place.source, hidden)
    try:
        with pytest.raises(BatchAssetsError, match=r"the table support\.tickets can't be read"):
            in_place.tick("tickets")
        assert in_place.tick("again") == []
        shown = CliRunner().invoke(main, ["status"])
        assert shown.exit_code == 1
        assert "tickets can't be shown: the table support.tickets can't be read" in shown.output
        assert "pipeline again" in shown.output
    finally:
        shutil.move(hidden, in_place.source)
    assert in_place.rows("tickets", "scored", "2026-01-01") == before


def test_a_materialization_of_the_asset_that_writes_the_table_makes_ours_stale(in_place, tmp_path):
    uri = str(tmp_path / "tickets")

    @dg.asset(key=["support", "tickets"])
    def support_tickets() -> None:
        write_deltalake(uri, table(tickets(2, seed=6), "monday"), mode="overwrite")

    pipeline = Pipeline(
        "observed",
        {"url": uri, "batch_by": "opened_on", "asset_key": "support/tickets"},
        columns={"id": "ticket_id", "text": "subject"},
        task={"kind": "classification", "labels": list(LABELS)},
    )
    definitions = dg.Definitions.merge(dg.Definitions(assets=[support_tickets]), build_pipeline(pipeline))
    documents = dg.AssetKey(["observed", "prod_data"])
    graph = definitions.resolve_asset_graph()
    assert graph.get(documents).parent_keys == {dg.AssetKey(["support", "tickets"])}

    def materialize_theirs() -> None:
        job = definitions.resolve_implicit_global_asset_job_def()
        assert job.execute_in_process(instance=in_place.instance, asset_selection=[support_tickets.key]).success

    def staleness() -> StaleStatus:
        resolver = CachingStaleStatusResolver(in_place.instance, graph, LoadingContextForTest(in_place.instance))
        return resolver.get_status(documents, "monday")

    materialize_theirs()
    register_batches(in_place.instance, "observed", ["monday"])
    assert materialize(definitions, in_place.instance, "observed", LAND_BATCHES, ["monday"]) == []
    assert staleness() == StaleStatus.FRESH
    materialize_theirs()
    assert staleness() == StaleStatus.STALE
