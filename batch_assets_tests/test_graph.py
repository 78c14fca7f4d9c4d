"""The whole graph on an ephemeral Dagster instance: real Spark, Delta, MLflow and servers, small real models."""

import json
import os
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from batch_assets.automation.launch import launched_here, materialize
from batch_assets.automation.runs import register_batches
from batch_assets.automation.unchanged import inputs_of, note, run_that_ended_alike
from batch_assets.definitions import build_defs
from batch_assets.lake.lake import Lake
from batch_assets.lake.tables import AI_QUERY_INFERENCE, BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY
from batch_assets.models.registry import champion, with_alias
from batch_assets.models.tracking import connect
from batch_assets.resources.endpoints import EndpointsResource
from batch_assets.sources.configured import scored_dataset
from batch_assets_tests.conftest import settings_for, write_csv, write_json_lines
from batch_assets_tests.servers import ChatServer, completion, passing_on_to

WHEN = {"landed_at", "scored_at", "created_at", "measured_at"}
NO_TEXT = {"null", "no text 0", "no text 1"}
TABLES = (PROD_DATA, BATCH_INFERENCE, AI_QUERY_INFERENCE, SUMMARY_QUALITY)


class Graph:
    """A deployment of its own: settings, lake, Dagster instance, and a chat server that counts.

    Its models are its own too, or in ``models``, a home that others share.
    """

    def __init__(self, home, server: ChatServer, models=None, asking="deadline_seconds = 5", **values) -> None:
        home.mkdir(parents=True, exist_ok=True)
        endpoints = home / "endpoints.toml"
        endpoints.write_text(f'[endpoints.counted]\nbase_url = "{server.url}"\nmodel = "m"\n{asking}')
        places = {"home": models or home, "lake": str(home / "lake")}
        self.settings = settings_for(**places, endpoints=endpoints, endpoint="counted", **values)
        self.server = server
        self.instance = dg.DagsterInstance.ephemeral()
        self.lake = Lake(self.settings.lake_uri)

    def run(self, **changes) -> list[str]:
        settings = self.settings.model_copy(update=changes)
        batches = scored_dataset(settings).batches()
        register_batches(self.instance, batches)
        return materialize(build_defs(settings=settings), self.instance, "materialize_all", batches)

    def rows(self, table, batch) -> list[dict]:
        rows = [row for part in self.lake.open(table).read(batch) for row in part.to_pylist()]
        return sorted(rows, key=lambda row: json.dumps(row, default=str))

    def tables(self) -> dict:
        """All rows of all tables, but for the times at which they were written."""
        return {
            (table.name, batch): [{k: v for k, v in row.items() if k not in WHEN} for row in self.rows(table, batch)]
            for table in TABLES
            for batch in self.lake.open(table).batches()
        }

    def versions(self) -> dict[str, int]:
        return {table.name: self.lake.open(table).version for table in TABLES}

    def stale(self, asset: str) -> list[str]:
        """Batches that the UI marks, as Dagster reckons it for the UI."""
        graph = build_defs(settings=self.settings).resolve_asset_graph()
        resolver = CachingStaleStatusResolver(self.instance, graph, LoadingContextForTest(self.instance))
        key = dg.AssetKey(asset)
        batches = self.lake.open(PROD_DATA).batches()
        return [batch for batch in batches if resolver.get_status(key, batch) == StaleStatus.STALE]

    def metadata(self, asset: str, batch: str | None = None) -> dict:
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[batch] if batch else None), limit=1
        ).records
        return {key: value.value for key, value in records[0].asset_materialization.metadata.items()}


@pytest.fixture
def server():
    with ChatServer(lambda body, n: completion("An answer to " + body["messages"][0]["content"][-20:])) as server:
        yield server


@pytest.fixture
def data(tmp_path, documents):
    """Three files of XSum's columns: CSV, JSON Lines with no text and a broken record, and Parquet."""
    odd = [documents[4], {"id": "null", "document": None, "summary": "x"}, {**documents[4], "id": "same text"}]
    odd += [{"id": f"no text {n}", "document": text, "summary": "x"} for n, text in enumerate(("", "\u200b \ufeff"))]
    path = write_json_lines(tmp_path / "data" / "b.jsonl", odd)
    with path.open("a") as file:
        file.write("{broken\n")
    write_csv(tmp_path / "data" / "a.csv", documents[:4])
    pq.write_table(pa.Table.from_pylist(documents[5:17]), tmp_path / "data" / "c.parquet")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A home for those who log the same model: the first one does, the others find it."""
    return tmp_path_factory.mktemp("models") / "home"


@pytest.fixture
def graph(home, server, data, models, t5_folder, spark):
    return Graph(home, server, models, model=str(t5_folder), dataset=str(data))


@pytest.fixture
def own_graph(home, server, data, t5_folder, spark):
    return Graph(home, server, model=str(t5_folder), dataset=str(data))


def test_the_graph_runs_end_to_end_on_local_files_with_a_local_encoder_decoder(graph, documents):
    assert graph.run() == []
    scored = {batch: graph.rows(BATCH_INFERENCE, batch) for batch in ("a", "b", "c")}
    assert {batch: len(rows) for batch, rows in scored.items()} == {"a": 4, "b": 5, "c": 12}
    originals = {row["id"]: row for row in documents}
    for row in [row for rows in scored.values() for row in rows]:
        assert (row["model_name"], row["model_version"]) == ("main.default.summarizer", 1)
        if row["id"] in NO_TEXT:
            assert (row["generated_summary"], row["request_hash"]) == (None, None)
            assert row["error_message"] == "the document has no text"
            continue
        assert row["error_message"] is None
        assert row["generated_summary"]
        assert 19 <= row["output_tokens"] <= 40
        if row["id"] in originals:
            assert (row["document"], row["summary"]) == (
                originals[row["id"]]["document"],
                originals[row["id"]]["summary"],
            )
    same = [row for row in scored["b"] if row["id"] not in NO_TEXT]
    assert same[0]["generated_summary"] == same[1]["generated_summary"]
    shown = graph.metadata("batch_inference", "b")
    assert {name: shown[name] for name in ("rows_scored", "rows_reused", "errors", "no_text", "alias")} == {
        "rows_scored": 1,
        "rows_reused": 1,
        "errors": 0,
        "no_text": 3,
        "alias": "champion",
    }
    assert shown["output_tokens"] == sum(row["output_tokens"] or 0 for row in scored["b"])
    (made_from,) = shown["dagster/column_lineage"].deps_by_column["generated_summary"]
    assert (made_from.asset_key.to_user_string(), made_from.column_name) == ("prod_data", "document")
    assert len(shown["dagster/column_schema"].columns) == len(BATCH_INFERENCE.columns)

    # the talk's prompt, the first ten rows of each batch by id, one request for each different document
    answered = {batch: graph.rows(AI_QUERY_INFERENCE, batch) for batch in ("a", "b", "c")}
    assert {batch: len(rows) for batch, rows in answered.items()} == {"a": 4, "b": 5, "c": 10}
    assert {row["id"] for row in answered["c"]} == set(sorted(row["id"] for row in documents[5:17])[:10])
    asked = [originals[row["id"]]["document"] for rows in answered.values() for row in rows if row["id"] in originals]
    prompt = "Based on the following document, provide a summary in less than 100 words. Document: "
    assert sorted(graph.server.prompts) == sorted(prompt + text for text in asked)
    for row in answered["b"]:
        error = "the document has no text" if row["id"] in NO_TEXT else None
        assert (row["error_message"], row["generated_summary"] is None) == (error, error is not None)
    shown = graph.metadata("ai_query_inference", "b")
    assert {name: shown[name] for name in ("requests", "summaries", "errors", "no_text")} == {
        "requests": 1,
        "summaries": 2,
        "errors": 0,
        "no_text": 3,
    }
    assert {row["model"] for row in answered["a"]} == {"said-by-server"}

    for row in graph.rows(SUMMARY_QUALITY, "b"):
        assert [row[name] for name in ("documents", "summaries", "errors")] == [2, 2, 0]
    quality = {row["table_name"]: row for row in graph.rows(SUMMARY_QUALITY, "c")}
    assert quality["m4_1_batch_inference"]["documents"] == 12
    assert quality["ai_query_inference"]["documents"] == 10
    assert 0 < quality["m4_1_batch_inference"]["rouge1"] < 1
    assert sum(json.loads(quality["m4_1_batch_inference"]["words_histogram"])) == 12
    best, worst = (json.loads(quality["m4_1_batch_inference"][name]) for name in ("best", "worst"))
    scores = [one["rouge1"] for one in (*best, *reversed(worst))]
    assert scores == sorted(scores, reverse=True)
    assert {one["id"] for one in best} <= originals.keys()
    report = (graph.settings.home / "reports" / "quality_report.html").read_text()
    assert report.count("<svg") >= 4
    assert "3 in m4_1_batch_inference, 3 in ai_query_inference." in report
    assert originals[best[0]["id"]]["document"][:200].split("<")[0].split("'")[0] in report
    for outside in ("src=", "<script", "@import", "url("):
        assert outside not in report.replace("url(#", "")
    shown = graph.metadata("quality_report")
    assert "data:image/png;base64," in shown["plots"]
    assert shown["mlflow_report"].endswith("/artifacts/reports/quality_report.html")

    assert "single_node_inference" in graph.metadata("champion_model")
    assert "sample" in graph.metadata("logged_model")
    assert graph.metadata("prod_data", "b")["rejected"] == 1
    run_page = graph.metadata("logged_model")["mlflow_run"]
    assert run_page.startswith("http://127.0.0.1:5000/#/experiments/")
    version = champion(connect(graph.settings), graph.settings)
    assert version.run_id in run_page
    assert {"lead_rouge1", "rouge1"} <= graph.metadata("model_evaluation").keys()


def test_a_second_run_scores_logs_and_registers_nothing(graph):
    assert graph.run() == []
    tables, versions, asked = graph.tables(), graph.versions(), len(graph.server.requests)
    assert graph.run() == []
    assert graph.versions() == versions
    assert graph.tables() == tables
    assert len(graph.server.requests) == asked
    for batch in ("a", "b", "c"):
        assert graph.metadata("batch_inference", batch)["rows_scored"] == 0
    # What there is to see of a model is still there to be seen.
    assert "generated" in graph.metadata("logged_model")["sample"]
    assert graph.metadata("champion_model")["single_node_inference"].count("\n") == 3
    client = connect(graph.settings)
    assert champion(client, graph.settings).number == 1
    assert len(client.search_runs([client.get_experiment_by_name("batch_assets").experiment_id])) == 1


def test_a_run_is_left_out_only_while_nothing_that_it_would_see_has_changed(own_graph, data, documents):
    graph, settings = own_graph, own_graph.settings

    def ended_alike(**changes) -> str | None:
        now = settings.model_copy(update=changes)
        return run_that_ended_alike(graph.instance, now, scored_dataset(now))

    def run() -> str:
        inputs = inputs_of(settings, scored_dataset(settings))
        assert graph.run() == []
        assert ended_alike() is None
        note(graph.instance, settings, scored_dataset(settings).batches(), inputs)
        last = graph.instance.get_runs(limit=1)[0].run_id
        assert ended_alike() == last
        return last

    run()
    assert ended_alike(max_length=99) is None
    assert ended_alike(new_model=True) is None
    assert ended_alike(limit=1) is None
    # Addresses with passwords are redacted one by one: a greedy match over all settings would hide what is between.
    uris = {"lake": "s3://bucket/lake", "mlflow_tracking_uri": "http://me:secret@there"}
    digests = {
        inputs_of(settings.model_copy(update={**uris, "max_length": length}), scored_dataset(settings))
        for length in (30, 31)
    }
    assert len(digests) == 2
    # An endpoints file, a checkpoint and a document.
    for file in (settings.endpoints, Path(settings.model) / "config.json", data / "b.jsonl"):
        before, times = file.read_bytes(), file.stat()
        file.write_bytes(before + b"\n")
        assert ended_alike() is None, file
        file.write_bytes(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert ended_alike() is not None
    # The registry, a table, and the report.
    client = connect(settings)
    client.set_registered_model_alias(settings.registered_model, "mine", "1")
    assert ended_alike() is None
    client.delete_registered_model_alias(settings.registered_model, "mine")
    assert ended_alike() is not None
    settings.report_file.rename(data.parent / "report")
    assert ended_alike() is None
    (data.parent / "report").rename(settings.report_file)
    write_csv(data / "a.csv", documents[:3])
    assert ended_alike() is None
    run()
    # A change that another process makes during a run is not taken for the run's own result.
    documents_table = graph.lake.open(PROD_DATA)
    documents_table.replace("a", [], {**documents_table.last_commit("a").metadata, "digest": "of nothing"})
    dataset = scored_dataset(settings)
    note(graph.instance, settings, dataset.batches(), inputs_of(settings, dataset))
    assert ended_alike() is None
    run()
    # A run that failed is repeated, whatever the one before it left.
    status, tags = dg.DagsterRunStatus.FAILURE, launched_here(graph.instance)
    graph.instance.add_run(dg.DagsterRun(job_name="materialize_all", tags=tags, status=status))
    assert ended_alike() is None


def test_only_what_changed_is_scored_again(graph, data, documents):
    assert graph.run() == []
    before, asked = graph.tables(), len(graph.server.requests)
    changed = [{**documents[0], "document": "An entirely new text about whales and the sea."}, *documents[1:4]]
    write_csv(data / "a.csv", changed)
    assert graph.run() == []
    assert graph.metadata("batch_inference", "a")["rows_scored"] == 1
    assert graph.metadata("batch_inference", "a")["rows_reused"] == 3
    assert len(graph.server.requests) == asked + 1
    after = graph.tables()
    assert {key for key in before if before[key] != after[key]} == {(table.name, "a") for table in TABLES}


def test_a_batch_shows_as_stale_when_its_own_input_has_changed_and_only_then(graph, data, documents):
    def land(*batches: str) -> None:
        assert materialize(build_defs(settings=graph.settings), graph.instance, "land_batches", [*batches]) == []

    followers = ("batch_inference", "ai_query_inference")
    assert graph.run() == []
    assert [graph.stale(asset) for asset in (*followers, "summary_quality")] == [[], [], []]
    land("a", "b", "c")
    assert [graph.stale(asset) for asset in followers] == [[], []]
    write_csv(data / "a.csv", [{**documents[0], "document": "Whales."}, *documents[1:4]])
    land("a", "b", "c")
    assert [graph.stale(asset) for asset in followers] == [["a"], ["a"]]
    assert materialize(build_defs(settings=graph.settings), graph.instance, "score_batches", ["a"]) == []
    assert [graph.stale(asset) for asset in (*followers, "summary_quality")] == [[], [], []]


def test_a_new_champion_rescores_history_only_when_asked_to(own_graph):
    assert own_graph.run() == []
    before = own_graph.tables()
    assert own_graph.run(max_length=30) == []
    client = connect(own_graph.settings)
    assert champion(client, own_graph.settings).number == 2
    assert with_alias(client, "main.default.summarizer", "previous").number == 1
    assert own_graph.tables() == before
    assert own_graph.stale("batch_inference") == ["a", "b", "c"]
    assert own_graph.stale("ai_query_inference") == []
    assert own_graph.run(max_length=30, rescore="all") == []
    assert own_graph.stale("batch_inference") == []
    rows = [row for batch in ("a", "b", "c") for row in own_graph.rows(BATCH_INFERENCE, batch)]
    assert {row["model_version"] for row in rows} == {2}
    versions = {row["model_version"] for row in own_graph.rows(SUMMARY_QUALITY, "a") if row["model_version"]}
    assert versions == {"1", "2"}
    # back to the first model: its run and its version are found again
    assert own_graph.run() == []
    assert champion(client, own_graph.settings).number == 1


@pytest.mark.proof
def test_another_precision_or_engine_rescores_history_only_when_asked_to_and_only_once(own_graph):
    assert own_graph.run() == []
    before = own_graph.tables()
    assert own_graph.run(dtype="int8") == []
    assert own_graph.tables() == before
    assert own_graph.run(dtype="int8", rescore="all") == []
    hashes = {row["request_hash"] for key, rows in before.items() for row in rows if key[0] == BATCH_INFERENCE.name}
    rescored = [row for batch in ("a", "b", "c") for row in own_graph.rows(BATCH_INFERENCE, batch) if row["document"]]
    assert not hashes & {row["request_hash"] for row in rescored}
    assert own_graph.metadata("batch_inference", "c")["dtype"] == "int8"
    assert own_graph.metadata("batch_inference", "c")["rows_scored"] == 12
    assert "int8" in own_graph.metadata("champion_model")["engine"]
    versions = own_graph.versions()
    assert own_graph.run(dtype="int8", rescore="all") == []
    assert own_graph.versions() == versions
    assert own_graph.run(engine="transformers", rescore="latest") == []
    engines = [own_graph.metadata("batch_inference", batch)["engine"] for batch in ("a", "b", "c")]
    assert engines == ["ctranslate2", "ctranslate2", "transformers"]


def test_one_batch_can_be_materialized_alone(graph):
    assert graph.run() == []
    before = graph.versions()
    result = (
        build_defs(settings=graph.settings.model_copy(update={"ai_query_limit": 2}))
        .resolve_implicit_global_asset_job_def()
        .execute_in_process(
            instance=graph.instance, partition_key="b", asset_selection=[dg.AssetKey("ai_query_inference")]
        )
    )
    assert result.success
    assert len(graph.rows(AI_QUERY_INFERENCE, "b")) == 2
    assert len(graph.rows(AI_QUERY_INFERENCE, "c")) == 10
    assert graph.versions() == {**before, "ai_query_inference": before["ai_query_inference"] + 1}


def test_a_failed_batch_leaves_its_table_as_it_was_and_the_others_are_committed_and_recorded(graph, home, models):
    refused = "Handling terminology"

    def reply(body, n):
        bad = refused in body["messages"][0]["content"]
        return (401, {}, b"") if bad else completion("fine")

    with ChatServer(reply) as server:
        failing = Graph(home, server, models, model=graph.settings.model, dataset=graph.settings.dataset)
        (failure,) = failing.run()
        assert "summary_quality" in failure
        assert failing.rows(AI_QUERY_INFERENCE, "a") == []
        assert len(failing.rows(AI_QUERY_INFERENCE, "c")) == 10
        for asset, batches in {"batch_inference": "abc", "ai_query_inference": "bc", "summary_quality": "bc"}.items():
            assert failing.instance.get_materialized_partitions(dg.AssetKey(asset)) == {*batches}
        refused = "nothing any more"
        asked = len(server.requests)
        assert failing.run() == []
        assert len(failing.rows(AI_QUERY_INFERENCE, "a")) == 4
        assert 1 <= len(server.requests) - asked <= 4


def test_an_endpoint_that_refuses_everything_commits_nothing_and_is_asked_again_when_mended(graph, home, models):
    mended = False

    def reply(body, n):
        return completion("fine") if mended else (404, {}, b"no such model")

    with ChatServer(reply) as server:
        broken = Graph(home, server, models, model=graph.settings.model, dataset=graph.settings.dataset)
        (failure,) = broken.run()
        assert "summary_quality" in failure
        assert broken.rows(AI_QUERY_INFERENCE, "c") == []
        mended = True
        assert broken.run() == []
        rows = broken.rows(AI_QUERY_INFERENCE, "c")
        assert [row["generated_summary"] for row in rows] == ["fine"] * 10


def test_no_text_is_shown_where_samples_are_turned_off(own_graph, documents):
    assert own_graph.run(samples=0) == []
    words = documents[0]["document"][:40], documents[5]["document"][:40]
    shown = [str(event) for run in own_graph.instance.get_runs() for event in own_graph.instance.all_logs(run.run_id)]
    assert not [event for event in shown for text in words if text in event]
    mlflow_files = [
        path for path in own_graph.settings.artifact_root.rglob("*") if path.suffix in {".json", ".md", ".txt"}
    ]
    assert mlflow_files
    held_out = "Identifying named entities"
    assert not [path for path in mlflow_files if held_out in path.read_text(errors="replace")]


def test_the_embedded_default_runs_with_one_request_a_row_counted_at_the_server(home, smollm2_checkpoints, spark):
    home.mkdir()
    (home / "checkpoints").symlink_to(smollm2_checkpoints)
    embedded = EndpointsResource()
    try:
        with passing_on_to(embedded.get("smollm2").base_url) as server:
            # Its conversion, which takes longest, is tested with the engines.
            small = {"limit": 3, "batch_rows": 2, "max_length": 8, "evaluation_rows": 2, "ai_query_limit": 1}
            # As patient as the embedded endpoint itself, which counts on machines that are busy or stand still.
            patient = "timeout_seconds = 1800\ndeadline_seconds = 1800\nparameters = { max_tokens = 16 }"
            graph = Graph(home, server, engine="transformers", asking=patient, **small)
            assert graph.run() == []
            assert len(server.requests) == 1 + 1
    finally:
        embedded.teardown_after_execution(None)
    assert [len(graph.rows(BATCH_INFERENCE, f"aclsum-test-000{n}")) for n in (1, 2)] == [2, 1]
    for row in graph.rows(BATCH_INFERENCE, "aclsum-test-0001"):
        assert row["generated_summary"]
        assert row["finish_reason"] in {"stop", "length"}
        assert 0 < row["output_tokens"] <= 8
    for row in graph.rows(AI_QUERY_INFERENCE, "aclsum-test-0001"):
        assert row["generated_summary"]
        assert row["prompt_tokens"] > 20
