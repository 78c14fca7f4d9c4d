"""The whole graph with real Spark, Delta, MLflow and servers, and small real models.

A command-line process runs the graph once in an empty home. Later runs are tested in this process, on copies of it.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import boto3
import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from batch_assets.cli import main
from batch_assets.definitions import build_defs
from batch_assets.graph.partitions import register_batches
from batch_assets.graph.pipeline_names import LAND_BATCHES, MATERIALIZE_ALL, SCORE_BATCHES
from batch_assets.lake.contracts import AI_QUERY_INFERENCE, BATCH_INFERENCE, PROD_DATA, SUMMARY_QUALITY, Table
from batch_assets.lake.lake import Lake
from batch_assets.models.registry import RegisteredModel
from batch_assets.models.tracking import connect
from batch_assets.operations.local_runs import launch_tags, materialize
from batch_assets.operations.unchanged_run import digest_of_inputs, last_run_with_same_state, record_state
from batch_assets.settings import DEFAULT_PIPELINE, PREFIX, Settings
from batch_assets.sources.configured import evaluation_dataset, scored_dataset
from batch_assets_tests.conftest import batch_assets, environment, settings_for, write_csv, write_json_lines
from batch_assets_tests.servers import ChatServer, completion

WHEN = {"landed_at", "scored_at", "created_at", "measured_at"}
NO_TEXT = {"null", "no text 0", "no text 1"}
TABLES = (PROD_DATA, BATCH_INFERENCE, AI_QUERY_INFERENCE, SUMMARY_QUALITY)


KEY = "open-sesame-4711"


def rows_of(lake: Lake, table: Table, batch: str) -> list[dict]:
    rows = [row for part in lake.open(table).read(batch) for row in part.to_pylist()]
    return sorted(rows, key=lambda row: json.dumps(row, default=str))


def tables_of(uri: str | Path) -> dict:
    """All rows of all tables of a lake, without the times they were written."""
    lake = Lake(str(uri))
    return {
        (table.name, batch): [{k: v for k, v in row.items() if k not in WHEN} for row in rows_of(lake, table, batch)]
        for table in TABLES
        for batch in lake.open(table).batches()
    }


class Graph:
    """A separate deployment: a lake, a Dagster instance, and a chat server that records its requests."""

    def __init__(self, settings: Settings, server: ChatServer, instance: dg.DagsterInstance) -> None:
        self.settings = settings
        self.server = server
        self.instance = instance
        self.lake = Lake(settings.lake_uri)

    def run(self, **changes) -> list[str]:
        settings = self.settings.model_copy(update=changes)
        batches = scored_dataset(settings).batches()
        register_batches(self.instance, DEFAULT_PIPELINE, batches)
        return self.materialize(MATERIALIZE_ALL, batches, settings)

    def materialize(self, job: str, batches: list[str], settings: Settings | None = None) -> list[str]:
        definitions = build_defs(settings=settings or self.settings)
        return materialize(definitions, self.instance, DEFAULT_PIPELINE, job, batches)

    def rows(self, table, batch) -> list[dict]:
        return rows_of(self.lake, table, batch)

    def tables(self) -> dict:
        """All rows of all tables, without the times they were written."""
        return tables_of(self.settings.lake_uri)

    def versions(self) -> dict[str, int]:
        return {table.name: self.lake.open(table).version for table in TABLES}

    @cached_property
    def _assets(self) -> BaseAssetGraph:
        return build_defs(settings=self.settings).resolve_asset_graph()

    def stale(self, asset: str) -> list[str]:
        """Batches that Dagster marks as stale in the UI."""
        resolver = CachingStaleStatusResolver(self.instance, self._assets, LoadingContextForTest(self.instance))
        key = dg.AssetKey(asset)
        batches = self.lake.open(PROD_DATA).batches()
        return [batch for batch in batches if resolver.get_status(key, batch) == StaleStatus.STALE]

    def metadata(self, asset: str, batch: str | None = None) -> dict:
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[batch] if batch else None), limit=1
        ).records
        return {key: value.value for key, value in records[0].asset_materialization.metadata.items()}


@dataclass(frozen=True)
class Finished:
    """A home after one command-line run: the run's environment, its output, and the requests it sent."""

    home: Path
    environment: dict[str, str]
    output: str
    requests: list[tuple[dict, dict[str, str]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("graph")


@pytest.fixture(scope="module")
def module_server():
    with ChatServer(lambda body, n: completion("An answer to " + body["messages"][0]["content"][-20:])) as server:
        yield server


@pytest.fixture
def server(module_server):
    """The chat server that all graphs call; a test may change its reply."""
    reply = module_server.reply
    yield module_server
    module_server.reply = reply


def write_data(folder: Path, documents: list[dict]) -> Path:
    """Write three files with XSum's columns: CSV, JSON Lines with an empty text and a broken record, and Parquet."""
    odd = [documents[4], {"id": "null", "document": None, "summary": "x"}, {**documents[4], "id": "same text"}]
    odd += [{"id": f"no text {n}", "document": text, "summary": "x"} for n, text in enumerate(("", "\u200b \ufeff"))]
    path = write_json_lines(folder / "b.jsonl", odd)
    with path.open("a") as file:
        file.write("{broken\n")
    write_csv(folder / "a.csv", documents[:4])
    pq.write_table(pa.Table.from_pylist(documents[5:17]), folder / "c.parquet")
    return folder


def write_endpoints(folder: Path, server: ChatServer, more: str) -> Path:
    path = folder / "endpoints.toml"
    path.write_text(f'[endpoints.counted]\nbase_url = "{server.url}"\nmodel = "m"\n{more}')
    return path


@pytest.fixture
def data(folder, documents) -> Path:
    """The files that all graphs read, in the state in which the first graph read them."""
    return write_data(folder / "data", documents)


@pytest.fixture(scope="module")
def finished(folder, documents, module_server, t5_folder) -> Finished:
    """A user's home after the first run."""
    home = folder / "home"
    home.mkdir()
    endpoints = write_endpoints(home, module_server, 'api_key_env = "SOME_KEY"')
    values = {"MODEL": str(t5_folder), "DATASET": str(write_data(folder / "data", documents)), "EVALUATION_ROWS": "3"}
    values |= {"ENDPOINTS": str(endpoints), "ENDPOINT": "counted", "SPARK_MASTER": "local[2,4]"}
    env = {**environment(home, **values), "SOME_KEY": KEY}
    run = batch_assets("run", env=env)
    assert run.returncode == 0, run.stdout + run.stderr
    return Finished(home, env, run.stdout + run.stderr, [*module_server.requests])


def settings_of(finished: Finished, server: ChatServer, folder: Path, **values) -> Settings:
    """The process's settings without the API key: Spark's workers keep the environment that Spark started with."""
    same = {name: finished.environment[f"{PREFIX}{name.upper()}"] for name in ("model", "dataset", "endpoint")}
    endpoints = write_endpoints(folder, server, "deadline_seconds = 5")
    return settings_for(**{"home": finished.home, **same, "endpoints": endpoints, **values})


@pytest.fixture
def graph(tmp_path, finished, data, server, spark) -> Iterator[Graph]:
    """A copy of the tables and of Dagster's storage after the first run, using the same models."""
    for part in ("lake", "dagster"):
        shutil.copytree(finished.home / part, tmp_path / part)
    with dg.DagsterInstance.from_config(str(tmp_path / "dagster")) as instance:
        yield Graph(settings_of(finished, server, tmp_path, lake=str(tmp_path / "lake")), server, instance)


@pytest.fixture
def unasked(graph) -> Iterator[Graph]:
    """The same documents and scored rows, but without endpoint answers and with an empty Dagster storage."""
    for table in (AI_QUERY_INFERENCE, SUMMARY_QUALITY):
        shutil.rmtree(graph.lake.table_uri(table))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Graph(graph.settings, graph.server, instance)


def test_the_graph_runs_end_to_end_on_local_files_with_a_local_encoder_decoder(graph, finished, documents):
    for part in ("expert summary", "ROUGE-1", "m4_1_batch_inference", "MLflow", "make ui", "Done in"):
        assert part in finished.output
    assert "Traceback" not in finished.output
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

    # the talk's prompt, the first ten rows of each batch by id, one request per distinct document
    answered = {batch: graph.rows(AI_QUERY_INFERENCE, batch) for batch in ("a", "b", "c")}
    assert {batch: len(rows) for batch, rows in answered.items()} == {"a": 4, "b": 5, "c": 10}
    assert {row["id"] for row in answered["c"]} == set(sorted(row["id"] for row in documents[5:17])[:10])
    asked = [originals[row["id"]]["document"] for rows in answered.values() for row in rows if row["id"] in originals]
    prompt = "Based on the following document, provide a summary in less than 100 words. Document: "
    assert sorted(body["messages"][0]["content"] for body, _ in finished.requests) == sorted(
        prompt + text for text in asked
    )
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
    version = RegisteredModel.of(connect(graph.settings), graph.settings).champion()
    assert version.run_id in run_page
    assert {"lead_rouge1", "rouge1"} <= graph.metadata("model_evaluation").keys()


def test_an_api_key_is_sent_but_never_stored_or_printed(finished, spark):
    assert {headers["Authorization"] for _, headers in finished.requests} == {f"Bearer {KEY}"}
    statement = "EXPLAIN_NOT"  # Spark's error message includes the query plan
    query = ["query", f"SELECT {statement}, ai_gen(id) FROM m4_1_prod_data"]
    failed = CliRunner(env=finished.environment).invoke(main, query)
    assert (failed.exit_code, statement in failed.stderr) == (2, True)
    assert KEY not in failed.output + finished.output
    files = [path for path in finished.home.rglob("*") if path.is_file()]
    assert {"m4_1_prod_data", "mlflow.db"} <= {part for path in files for part in path.parts}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_second_run_command_does_nothing_and_prints_the_same_metrics(finished, data, server):
    report, tables = finished.home / "reports" / "quality_report.html", tables_of(finished.home / "lake")
    asked, written = len(server.requests), report.stat().st_mtime_ns
    again = CliRunner(env=finished.environment).invoke(main, ["run"])
    assert again.exit_code == 0, again.output
    assert "so there is nothing to do" in again.output
    for part in ("expert summary", "ROUGE-1", "m4_1_batch_inference", "Done in"):
        assert part in again.output
    assert "batch_inference       batch" not in again.output
    assert (len(server.requests), report.stat().st_mtime_ns) == (asked, written)
    assert tables_of(finished.home / "lake") == tables


def test_a_second_run_scores_logs_and_registers_nothing(graph):
    client = connect(graph.settings)
    experiment = client.get_experiment_by_name("batch_assets").experiment_id
    runs = [run.info.run_id for run in client.search_runs([experiment])]
    tables, versions, asked = graph.tables(), graph.versions(), len(graph.server.requests)
    assert graph.run() == []
    assert graph.versions() == versions
    assert graph.tables() == tables
    assert len(graph.server.requests) == asked
    for batch in ("a", "b", "c"):
        assert graph.metadata("batch_inference", batch)["rows_scored"] == 0
    # The model's metadata is still shown.
    assert "generated" in graph.metadata("logged_model")["sample"]
    assert graph.metadata("champion_model")["single_node_inference"].count("\n") == 3
    assert RegisteredModel.of(client, graph.settings).champion().number == 1
    assert [run.info.run_id for run in client.search_runs([experiment])] == runs


def test_a_run_is_skipped_only_while_its_inputs_and_outputs_are_unchanged(
    graph, data, documents, tmp_path, monkeypatch
):
    settings = graph.settings

    def ended_alike(**changes) -> str | None:
        now = settings.model_copy(update=changes)
        return last_run_with_same_state(graph.instance, now, scored_dataset(now))

    def add_run(status: dg.DagsterRunStatus) -> str:
        run = dg.DagsterRun(job_name="materialize_all", tags=launch_tags(graph.instance), status=status)
        return graph.instance.add_run(run).run_id

    def note_last() -> None:
        dataset = scored_dataset(settings)
        record_state(graph.instance, settings, dataset.batches(), digest_of_inputs(settings, dataset))

    run = add_run(dg.DagsterRunStatus.SUCCESS)
    assert ended_alike() is None
    note_last()
    assert ended_alike() == run
    assert ended_alike(max_length=99) is None
    assert ended_alike(new_model=True) is None
    assert ended_alike(limit=1) is None
    # Each address's password is redacted on its own: a greedy match would hide all settings between two addresses.
    uris = {"lake": "s3://bucket/lake", "mlflow_tracking_uri": "http://me:secret@there"}
    digests = {
        digest_of_inputs(settings.model_copy(update={**uris, "max_length": length}), scored_dataset(settings))
        for length in (30, 31)
    }
    assert len(digests) == 2
    # A new package matters, but not one that setuptools vendors.
    for folder, is_same in (("site", False), ("_vendor", True)):
        (tmp_path / folder / "new-1.0.dist-info").mkdir(parents=True)
        (tmp_path / folder / "new-1.0.dist-info" / "METADATA").write_text("Name: new\nVersion: 1.0\n")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(tmp_path / folder))
            assert (ended_alike() == run) is is_same
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
    write_csv(data / "a.csv", documents[:4])
    # A failed run is repeated, whatever the run before it recorded.
    add_run(dg.DagsterRunStatus.FAILURE)
    assert ended_alike() is None
    # A change made by another process during a run is not mistaken for the run's own result.
    run = add_run(dg.DagsterRunStatus.SUCCESS)
    note_last()
    assert ended_alike() == run
    add_run(dg.DagsterRunStatus.SUCCESS)
    documents_table = graph.lake.open(PROD_DATA)
    documents_table.replace("a", [], {**documents_table.last_commit("a").metadata, "digest": "of nothing"})
    note_last()
    assert ended_alike() is None


def test_only_changed_batches_are_stale_and_scored_again(graph, data, documents):
    def land() -> None:
        assert (
            materialize(
                build_defs(settings=graph.settings), graph.instance, DEFAULT_PIPELINE, LAND_BATCHES, ["a", "b", "c"]
            )
            == []
        )

    followers = ("batch_inference", "ai_query_inference")
    before, asked = graph.tables(), len(graph.server.requests)
    land()
    assert [graph.stale(asset) for asset in (*followers, "summary_quality")] == [[], [], []]
    changed = [{**documents[0], "document": "An entirely new text about whales and the sea."}, *documents[1:4]]
    write_csv(data / "a.csv", changed)
    land()
    assert [graph.stale(asset) for asset in followers] == [["a"], ["a"]]
    assert graph.materialize(SCORE_BATCHES, ["a"]) == []
    assert [graph.stale(asset) for asset in (*followers, "summary_quality")] == [[], [], []]
    assert graph.metadata("batch_inference", "a")["rows_scored"] == 1
    assert graph.metadata("batch_inference", "a")["rows_reused"] == 3
    assert len(graph.server.requests) == asked + 1
    after = graph.tables()
    assert {key for key in before if before[key] != after[key]} == {(table.name, "a") for table in TABLES}


@pytest.mark.proof
def test_the_graph_keeps_working_after_its_tables_and_landing_folder_move_to_a_bucket(
    graph, tmp_path, s3_workers, documents
):
    bucket = boto3.client("s3")
    for file in (tmp_path / "lake").rglob("*"):
        if file.is_file():
            bucket.upload_file(str(file), "lake", str(file.relative_to(tmp_path)))
    shutil.rmtree(tmp_path / "lake")
    places = {"lake": "s3://lake/lake", "landing": "s3://lake/landing"}
    graph = Graph(graph.settings.model_copy(update=places), graph.server, graph.instance)
    before = graph.tables()
    dropped = write_json_lines(tmp_path / "dropped.jsonl", documents[17:19])
    environment = {f"{PREFIX}{name.upper()}": str(value) for name, value in {**places, "home": tmp_path}.items()}
    landed = CliRunner(env=environment).invoke(main, ["land", str(dropped)])
    assert landed.exit_code == 0, landed.output
    register_batches(graph.instance, DEFAULT_PIPELINE, ["dropped"])
    assert graph.materialize(SCORE_BATCHES, ["dropped"]) == []
    assert graph.metadata("batch_inference", "dropped")["rows_scored"] == 2
    assert len(graph.rows(SUMMARY_QUALITY, "dropped")) == 2
    assert {key: rows for key, rows in graph.tables().items() if key[1] != "dropped"} == before
    keys = [found["Key"] for found in bucket.list_objects_v2(Bucket="lake")["Contents"]]
    assert "landing/.taken/dropped/dropped.jsonl" in keys
    assert not [key for key in keys if "_completions" in key]
    assert not (tmp_path / "lake").exists()


@pytest.mark.proof
def test_a_new_precision_or_engine_rescores_history_once_and_only_on_request(graph):
    before = graph.tables()
    assert graph.run(dtype="int8") == []
    assert graph.tables() == before
    assert graph.run(dtype="int8", rescore="all") == []
    hashes = {row["request_hash"] for key, rows in before.items() for row in rows if key[0] == BATCH_INFERENCE.name}
    rescored = [row for batch in ("a", "b", "c") for row in graph.rows(BATCH_INFERENCE, batch) if row["document"]]
    assert not hashes & {row["request_hash"] for row in rescored}
    assert graph.metadata("batch_inference", "c")["dtype"] == "int8"
    assert graph.metadata("batch_inference", "c")["rows_scored"] == 12
    assert "int8" in graph.metadata("champion_model")["engine"]
    versions = graph.versions()
    assert graph.run(dtype="int8", rescore="all") == []
    assert graph.versions() == versions
    assert graph.run(engine="transformers", rescore="latest") == []
    engines = [graph.metadata("batch_inference", batch)["engine"] for batch in ("a", "b", "c")]
    assert engines == ["ctranslate2", "ctranslate2", "transformers"]


def test_a_single_batch_can_be_materialized(graph):
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


def test_a_failed_batch_writes_nothing_while_the_other_batches_are_committed_and_recorded(unasked, documents):
    """The endpoint rejects the API key for one document of batch a, and returns 404 for every document of batch c."""
    unknown = {row["document"] for row in documents[5:17]}

    def reply(body, n):
        asked = body["messages"][0]["content"].partition("Document: ")[2]
        return (401, {}, b"") if asked == documents[0]["document"] else (404, {}, b"") if asked in unknown else fine

    fine = completion("fine")
    unasked.server.reply = reply
    (failure,) = unasked.run()
    assert "summary_quality" in failure
    assert [len(unasked.rows(AI_QUERY_INFERENCE, batch)) for batch in ("a", "b", "c")] == [0, 5, 0]
    for asset, batches in {"batch_inference": "abc", "ai_query_inference": "b", "summary_quality": "b"}.items():
        assert unasked.instance.get_materialized_partitions(dg.AssetKey(asset)) == {*batches}
    unasked.server.reply = lambda body, n: fine
    asked = len(unasked.server.requests)
    assert unasked.run() == []
    answers = [row["generated_summary"] for batch in ("a", "c") for row in unasked.rows(AI_QUERY_INFERENCE, batch)]
    assert answers == ["fine"] * (4 + 10)
    assert 1 + 10 <= len(unasked.server.requests) - asked <= 4 + 10


@pytest.mark.proof
def test_a_new_champion_rescores_history_only_on_request_and_logs_no_text_when_samples_are_off(graph, documents):
    before = graph.tables()
    runs_before = {run.run_id for run in graph.instance.get_runs()}
    files_before = {*graph.settings.artifact_root.rglob("*")}
    assert graph.run(max_length=30, samples=0) == []
    client = connect(graph.settings)
    assert RegisteredModel.of(client, graph.settings).champion().number == 2
    assert RegisteredModel(client, "main.default.summarizer").with_alias("previous").number == 1
    assert graph.tables() == before
    assert graph.stale("batch_inference") == ["a", "b", "c"]
    assert graph.stale("ai_query_inference") == []
    assert graph.run(max_length=30, rescore="all", samples=0) == []
    assert graph.stale("batch_inference") == []
    # Nothing that Dagster and MLflow store about these two runs contains a document's text.
    runs = [run.run_id for run in graph.instance.get_runs() if run.run_id not in runs_before]
    events = [str(event) for run_id in runs for event in graph.instance.all_logs(run_id)]
    files = {*graph.settings.artifact_root.rglob("*")} - files_before
    kept = [path.read_text(errors="replace") for path in files if path.suffix in {".json", ".md", ".txt", ".html"}]
    shown = [row["document"] for row in documents[:17]]
    shown += [document.document for document in evaluation_dataset(graph.settings).held_out(3)]
    assert (len(runs), len(kept) > 5) == (2, True)
    assert [text for text in [*events, *kept] for document in shown if document[:40] in text] == []
    rows = [row for batch in ("a", "b", "c") for row in graph.rows(BATCH_INFERENCE, batch)]
    assert {row["model_version"] for row in rows} == {2}
    versions = {row["model_version"] for row in graph.rows(SUMMARY_QUALITY, "a") if row["model_version"]}
    assert versions == {"1", "2"}
    # Return to the first model, which other tests use: its run and its version are found again.
    assert graph.run() == []
    assert RegisteredModel.of(client, graph.settings).champion().number == 1
