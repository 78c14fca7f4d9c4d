"""Pipelines beside the default one, materialized on one Spark session and one instance."""

import json
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner
from deltalake import write_deltalake

from batch_assets.cli import main
from batch_assets.definitions import build_defs
from batch_assets.errors import BatchAssetsError
from batch_assets.graph.partitions import known_batches, register_batches
from batch_assets.graph.pipeline_names import LAND_BATCHES, MATERIALIZE_ALL, SCORE_BATCHES
from batch_assets.lake.lake import Lake
from batch_assets.models.registry import RegisteredModel
from batch_assets.models.tracking import connect
from batch_assets.operations.forget import forget
from batch_assets.operations.local_runs import materialize
from batch_assets.operations.promotion import promote_version
from batch_assets.operations.reset import reset
from batch_assets.operations.status import batches_in, champion_of, status_of
from batch_assets.pipelines.deployment import load_deployment
from batch_assets.settings import DEFAULT_PIPELINE, PREFIX
from batch_assets.sources.configured import landing_folder
from batch_assets.tasks.output_tables import tables_of
from batch_assets_tests.conftest import SMALL_T5, write_json_lines
from batch_assets_tests.pipeline_deployment import PipelineDeployment, write_deployment
from batch_assets_tests.servers import ChatServer, completion
from batch_assets_tests.ticket_t5 import LABELS, tickets

TICKET_T5 = Path(__file__).with_name("ticket-t5")
# The body of an article is long enough for the small T5, which repeats its beginning.
BODY = "The council has approved the plan for a new bridge across the river, which will open to traffic next year."


@pytest.fixture(scope="module")
def server():
    with ChatServer(lambda body, n: completion(f"Title {n}")) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory, server) -> Path:
    folder = tmp_path_factory.mktemp("deployment")
    write_json_lines(
        folder / "data" / "monday.jsonl", [*tickets(6, seed=3), {"ticket_id": "none", "subject": None, "body": None}]
    )
    write_json_lines(folder / "held_out.jsonl", tickets(6, seed=4))
    articles = [{"id": f"a{n}", "body": f"{n}. {BODY}", "title": f"{n}. The council has approved"} for n in range(3)]
    write_json_lines(folder / "articles.jsonl", articles)
    files = {
        "tickets": {
            "source": {"dataset": "data/*.jsonl"},
            "columns": {
                "id": "ticket_id",
                "text": "{subject}\n\n{body}",
                "reference": "category",
                "carry": ["customer"],
            },
            "task": {"kind": "classification", "labels": list(LABELS)},
            "model": {"checkpoint": str(TICKET_T5)},
            "evaluation": {"dataset": "held_out.jsonl", "rows": 6},
            "output": {"table": "ticket_categories", "column": "category"},
        },
        "titles": {
            "source": {"landing": "incoming"},
            "columns": {"text": "body", "reference": "title"},
            "task": {"kind": "generation", "prompt": "Don't shout.\n\n{document}\n\nTitle:"},
            "model": {"checkpoint": str(SMALL_T5), "max_length": 12, "engine": "transformers"},
            "ai_query": {"endpoint": "counted", "limit": 2},
            "evaluation": {"dataset": "articles.jsonl", "rows": 2},
        },
    }
    write_deployment(folder, server, files)
    return folder


@pytest.fixture(scope="module")
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def pipelines(folder, instance, monkeypatch, spark) -> PipelineDeployment:
    return PipelineDeployment(folder, instance, monkeypatch)


@pytest.fixture
def scored(pipelines) -> PipelineDeployment:
    """The tickets after their first run."""
    if known_batches(pipelines.instance, "tickets") == []:
        assert pipelines.run("tickets", MATERIALIZE_ALL, ["monday"]) == []
    connect(pipelines.settings("tickets"))
    return pipelines


def test_tickets_are_classified_with_carried_columns_measured_and_reported(scored):
    rows = {row["id"]: row for row in scored.rows("tickets", "scored", "monday")}
    expected = {row["ticket_id"]: row for row in tickets(6, seed=3)}
    assert {name: row["category"] for name, row in rows.items()} == {
        **{name: row["category"] for name, row in expected.items()},
        "none": None,
    }
    assert rows["none"]["error_message"] == "the document has no text"
    assert {name: rows[name]["customer"] for name in expected} == {n: row["customer"] for n, row in expected.items()}
    assert {row["reference"] for row in rows.values()} == {*LABELS, None}
    assert scored.metadata("tickets", "batch_inference", "monday")["rows_scored"] == 6
    (quality,) = scored.rows("tickets", "quality", "monday")
    assert (quality["accuracy"], quality["answers"], quality["references"], quality["errors"]) == (1, 6, 6, 0)
    assert json.loads(quality["outcomes"]) == {json.dumps([label, label]): 2 for label in LABELS}
    assert json.loads(quality["label_histogram"]) == dict.fromkeys(LABELS, 2)
    settings = scored.settings("tickets")
    report = settings.report_file.read_text()
    assert "Reference against answer" in report
    assert "macro_f1: 1.000" in report
    assert "summar" not in report.lower().replace("tickets_summar", "")
    client = connect(settings)
    version = RegisteredModel.of(client, settings).champion()
    assert version.name == "main.default.tickets"
    assert client.get_run(version.run_id).data.metrics["majority_accuracy"] == pytest.approx(1 / 3, abs=0.01)


def test_a_carried_column_can_be_added_and_only_new_documents_are_scored(scored):
    file, data = scored.folder / "pipelines" / "tickets.yaml", scored.folder / "data" / "monday.jsonl"
    content = yaml.safe_load(file.read_text())
    content["attributes"]["columns"]["carry"].append("subject")
    before = scored.versions("tickets")
    file.write_text(yaml.safe_dump(content))
    assert {row["subject"] for row in scored.rows("tickets", "scored", "monday")} == {None}
    assert [(batch.batch, batch.state) for batch in status_of(scored.settings("tickets")).batches] == [
        ("monday", "scored")
    ]
    assert scored.versions("tickets") == before
    new = {**tickets(3, seed=5)[0], "ticket_id": "new"}
    data.write_text(data.read_text() + json.dumps(new) + "\n")
    for job in (LAND_BATCHES, SCORE_BATCHES):
        assert scored.run("tickets", job, ["monday"]) == []
    assert scored.metadata("tickets", "batch_inference", "monday")["rows_scored"] == 1
    rows = {row["id"]: row["subject"] for row in scored.rows("tickets", "scored", "monday")}
    expected = {row["ticket_id"]: row["subject"] for row in [*tickets(6, seed=3), new]}
    assert rows == {**expected, "none": None}


def test_a_second_run_of_a_pipeline_scores_nothing_and_new_labels_make_it_stale_on_request(scored):
    before = Lake.of(scored.settings("tickets")).find(tables_of(scored.settings("tickets")).scored).version
    assert scored.run("tickets", SCORE_BATCHES, ["monday"]) == []
    assert scored.metadata("tickets", "batch_inference", "monday")["rows_scored"] == 0
    labels = (*((label, None) for label in LABELS), ("other", None))
    assert scored.run("tickets", SCORE_BATCHES, ["monday"], labels=labels) == []
    now = Lake.of(scored.settings("tickets")).find(tables_of(scored.settings("tickets")).scored).version
    assert now == before
    assert scored.run("tickets", SCORE_BATCHES, ["monday"], labels=labels[:1] + labels[2:], rescore="all") == []
    rows = {row["id"]: row for row in scored.rows("tickets", "scored", "monday")}
    refused = [row for row in rows.values() if row["reference"] == "bug"]
    assert {row["error_message"] for row in refused} == {"the answer is not one of the labels: 'bug'"}
    assert {(row["category"], row["error_class"]) for row in refused} == {(None, "model")}
    assert scored.run("tickets", SCORE_BATCHES, ["monday"], rescore="all") == []
    assert {row["error_message"] for row in scored.rows("tickets", "scored", "monday")} == {
        None,
        "the document has no text",
    }


def test_a_new_champion_rescores_on_request_and_no_text_is_shown_when_samples_are_off(scored):
    settings = scored.settings("tickets")
    before = scored.rows("tickets", "scored", "monday")
    files = {*settings.artifact_root.rglob("*")}
    runs = {run.run_id for run in scored.instance.get_runs()}
    changes = {"samples": 0, "max_length": 19}
    assert scored.run("tickets", MATERIALIZE_ALL, ["monday"], **changes) == []
    assert RegisteredModel.of(connect(settings), settings).champion().number == 2
    assert scored.rows("tickets", "scored", "monday") == before
    assert scored.run("tickets", SCORE_BATCHES, ["monday"], **changes, rescore="all") == []
    assert {row["model_version"] for row in scored.rows("tickets", "scored", "monday")} == {2}
    assert {row["model_version"] for row in scored.rows("tickets", "quality", "monday")} == {"1", "2"}
    # Nothing that Dagster and MLflow store about these two runs contains a document's text.
    later = [run.run_id for run in scored.instance.get_runs() if run.run_id not in runs]
    events = [str(event) for run_id in later for event in scored.instance.all_logs(run_id)]
    new = {*settings.artifact_root.rglob("*")} - files
    kept = [path.read_text(errors="replace") for path in new if path.suffix in {".json", ".md", ".txt", ".html"}]
    bodies = {row["body"] for seed in (3, 4) for row in tickets(6, seed=seed)}
    assert (len(later), len(kept) > 5) == (2, True)
    assert [text for text in [*events, *kept] for body in bodies if body in text] == []


def test_failed_rows_are_requested_again_with_the_version_that_scored_their_batch(scored):
    settings = scored.settings("tickets")
    client = connect(settings)
    model = RegisteredModel.of(client, settings)
    if len(model.versions()) == 1:
        assert scored.run("tickets", MATERIALIZE_ALL, ["monday"], max_length=19) == []
    newest, one_label_less = model.champion().number, settings.labels[1:]
    assert scored.run("tickets", SCORE_BATCHES, ["monday"], labels=one_label_less, rescore="all") == []
    failed = [row for row in scored.rows("tickets", "scored", "monday") if row["error_class"]]
    (observed,) = scored.instance.fetch_observations(dg.AssetKey(["tickets", "batch_inference"]), limit=1).records
    assert observed.partition_key == "monday"
    expected = {"all": len(failed), "model": len(failed), "requested_again": 0}
    assert observed.asset_observation.metadata["failed_rows"].value == expected
    promote_version(settings, 3 - newest, lambda line: None)
    try:
        changes = {"labels": one_label_less, "retry_errors": True}
        assert scored.run("tickets", SCORE_BATCHES, ["monday"], **changes) == []
        assert scored.metadata("tickets", "batch_inference", "monday")["rows_scored"] == len(failed) > 0
        assert {row["model_version"] for row in scored.rows("tickets", "scored", "monday")} == {newest}
    finally:
        promote_version(settings, newest, lambda line: None)
        assert scored.run("tickets", SCORE_BATCHES, ["monday"], rescore="all") == []


def test_dropped_files_of_a_pipeline_get_answers_by_model_and_by_endpoint(pipelines, server):
    settings = pipelines.settings("titles")
    landing = landing_folder(settings)
    landing.take_copies([pipelines.folder / "articles.jsonl"], "monday", replaces=False)
    before = len(server.requests)
    assert pipelines.run("titles", MATERIALIZE_ALL, ["monday"]) == []
    rows = pipelines.rows("titles", "scored", "monday")
    assert len(rows) == 3
    assert all(row["generated_text"] and row["error_message"] is None for row in rows)
    assert sorted(body["messages"][-1]["content"] for body, _ in server.requests[before:]) == [
        f"Don't shout.\n\n{n}. {BODY}\n\nTitle:" for n in range(2)
    ]
    answered = pipelines.rows("titles", "answered", "monday")
    assert {row["id"]: row["generated_text"][:6] for row in answered} == {"a0": "Title ", "a1": "Title "}
    by_table = {row["table_name"]: row for row in pipelines.rows("titles", "quality", "monday")}
    assert set(by_table) == {"titles_predictions", "titles_ai_query"}
    assert by_table["titles_predictions"]["rougeL"] > 0.2
    assert by_table["titles_ai_query"]["answers"] == 2


def test_pipelines_with_equal_batches_do_not_touch_each_other(scored):
    assert known_batches(scored.instance, DEFAULT_PIPELINE) == []
    default = scored.settings(DEFAULT_PIPELINE)
    assert [Lake.of(default).exists(table) for table in tables_of(default).all] == [False] * 5
    events = scored.instance.get_latest_materialization_event(dg.AssetKey("batch_inference"))
    assert events is None


def test_the_checks_of_a_pipeline_ran_in_one_step_for_each_asset_and_passed(scored):
    keys = build_defs(settings=scored.settings("tickets")).resolve_asset_graph().asset_check_keys
    names = {key.name for key in keys}
    assert {"contract", "row_parity", "one_model", "error_rate", "drift", "beats_baseline", "promotion"} <= names
    assert "repetition" not in names
    storage = scored.instance.event_log_storage
    for key in keys:
        (record,) = storage.get_asset_check_execution_history(check_key=key, limit=1)
        assert record.event.dagster_event.asset_check_evaluation_data.passed, key


def test_one_bad_batch_leaves_its_check_red_and_later_runs_green(scored):
    write_json_lines(
        scored.folder / "data" / "tuesday.jsonl", [{**row, "ticket_id": f"{n}"} for n, row in enumerate(tickets(3))]
    )
    strict = {"error_rate": 0.0, "labels": (("billing", None), ("question", None))}
    assert scored.run("tickets", MATERIALIZE_ALL, ["tuesday"], **strict, new_model=False) == []
    key = dg.AssetCheckKey(dg.AssetKey(["tickets", "answer_quality"]), "error_rate")

    def verdict() -> dict:
        (record,) = scored.instance.event_log_storage.get_asset_check_execution_history(check_key=key, limit=1)
        return record.event.dagster_event.asset_check_evaluation_data.metadata["batches"].value

    assert list(verdict()) == ["tuesday"]
    assert scored.run("tickets", SCORE_BATCHES, ["monday"], error_rate=0.0) == []
    assert list(verdict()) == ["tuesday"]


def test_a_table_of_another_pipeline_or_of_another_writer_is_never_written(scored):
    settings = scored.settings("tickets")
    lake, tables = Lake.of(settings), tables_of(settings)
    refused = "belongs to the pipeline tickets, so it can't be used by the pipeline letters"
    with pytest.raises(BatchAssetsError, match=refused):
        lake.open(tables_of(settings.model_copy(update={"pipeline": "letters"})).scored)
    theirs = tables_of(settings.model_copy(update={"pipeline": "theirs", "output_table": None})).scored
    write_deltalake(lake.table_uri(theirs), pa.table({"id": ["1"], "batch": ["a"]}), partition_by=["batch"])
    refused = "was not made by a pipeline, so it can't be used by the pipeline theirs"
    with pytest.raises(BatchAssetsError, match=refused):
        lake.open(theirs)
    assert lake.open(tables.scored).table.owner == "tickets"


def test_a_changed_source_is_refused_until_the_pipeline_is_reset(scored):
    file = scored.folder / "pipelines" / "letters.yaml"
    attributes = yaml.safe_load((scored.folder / "pipelines" / "tickets.yaml").read_text())["attributes"]
    attributes["name"] = "letters"
    del attributes["output"]
    write_json_lines(scored.folder / "letters.jsonl", tickets(3, seed=8))
    write_json_lines(scored.folder / "others.jsonl", tickets(3, seed=9))

    def landing(dataset: str) -> list[str]:
        content = {
            "type": "batch_assets.InferencePipeline",
            "attributes": {**attributes, "source": {"dataset": dataset}},
        }
        file.write_text(yaml.safe_dump(content))
        return scored.run("letters", LAND_BATCHES, [Path(dataset).stem])

    try:
        assert landing("letters.jsonl") == []
        assert len(landing("others.jsonl")) == 1
        settings = scored.settings("letters")
        with pytest.raises(
            BatchAssetsError, match=r'was set up with .*"letters.jsonl".* now .*batch-assets reset letters'
        ):
            Lake.of(settings).open(tables_of(settings).documents)
        assert Lake.of(settings).find(tables_of(settings).documents).rows() == 3
        done = []
        settings = settings.model_copy(update={"output_column": "another"})
        reset(settings, done.append)
        assert "letters_documents removed" in done
        assert landing("others.jsonl") == []
        assert scored.rows("letters", "documents", "letters") == []
        assert len(scored.rows("letters", "documents", "others")) == 3
    finally:
        file.unlink()


def test_commands_show_all_pipelines_and_use_one(scored):
    shown = json.loads(CliRunner().invoke(main, ["status", "--json"]).output)
    assert set(shown["pipelines"]) == {DEFAULT_PIPELINE, "tickets", "titles"}
    assert shown["invalid_pipelines"] == []
    one = json.loads(CliRunner().invoke(main, ["status", "tickets", "--json"]).output)
    assert one["champion"]["model"] == "main.default.tickets"
    assert one["champion"]["score_name"] == "accuracy"
    versions = CliRunner().invoke(main, ["models", "--json"]).output.splitlines()
    assert "main.default.tickets" in {json.loads(line)["model"] for line in versions}
    tried = CliRunner().invoke(main, ["try", "--pipeline", "tickets", "App crashes\n\nHello, an error appears."])
    assert tried.output.splitlines()[0] == "bug"


def test_a_pipeline_scores_with_the_champion_of_another_one_and_leaves_its_model_alone(scored):
    owner = scored.settings("tickets")
    client = connect(owner)
    attributes = yaml.safe_load((scored.folder / "pipelines" / "tickets.yaml").read_text())["attributes"]
    attributes |= {"name": "mails", "source": {"dataset": "mails.jsonl"}}
    attributes["model"] = {"pipeline": "tickets", "rescore": "all"}
    for section in ("task", "evaluation", "output"):
        del attributes[section]
    write_json_lines(scored.folder / "mails.jsonl", tickets(3, seed=11))
    file = scored.folder / "pipelines" / "mails.yaml"
    file.write_text(yaml.safe_dump({"type": "batch_assets.InferencePipeline", "attributes": attributes}))

    def state_of_mlflow() -> list:
        experiments = client.search_experiments()
        runs = client.search_runs([one.experiment_id for one in experiments])
        versions = client.search_model_versions()
        aliases = [(one.name, one.aliases) for one in client.search_registered_models()]
        # MLflow itself adds this file to a version that is loaded.
        files = [path for path in owner.artifact_root.rglob("*") if path.name != "registered_model_meta"]
        reports = [(path, path.stat().st_mtime_ns) for path in files if path.suffix == ".html"]
        tags = [(run.info.run_id, run.data.tags, run.data.metrics) for run in runs]
        return [{one.name for one in experiments}, tags, [dict(one) for one in versions], aliases, {*files}, reports]

    def score(job: str = SCORE_BATCHES) -> tuple[int, set]:
        before = state_of_mlflow()
        assert scored.run("mails", job, ["mails"]) == []
        assert state_of_mlflow() == before
        rows = scored.rows("mails", "scored", "mails")
        expected = {row["ticket_id"]: row["category"] for row in tickets(3, seed=11)}
        assert {row["id"]: row["label"] for row in rows} == expected
        written = {(row["model_name"], row["model_version"]) for row in rows}
        return scored.metadata("mails", "batch_inference", "mails")["rows_scored"], written

    def states() -> list[str]:
        found = champion_of(scored.instance, settings)
        assert (found.model, found.pipeline) == (owner.registered_model, "tickets")
        return [batch.state for batch in batches_in(scored.instance, settings, found.version)]

    try:
        if len(client.search_model_versions(f"name = '{owner.registered_model}'")) == 1:
            assert scored.run("tickets", MATERIALIZE_ALL, ["monday"], max_length=19) == []
        first, settings = RegisteredModel.of(client, owner).champion().number, scored.settings("mails")
        second = 3 - first
        assert score(MATERIALIZE_ALL) == (3, {(owner.registered_model, first)})
        assert states() == ["scored"]
        assert "main.default.tickets of the pipeline tickets, 1 batches" in settings.report_file.read_text()
        promote_version(owner, second, lambda line: None)
        assert states() == ["stale"]
        assert score() == (3, {(owner.registered_model, second)})
        batches = (("tickets", "monday"), ("mails", "mails"))
        assert len({scored.metadata(name, "batch_inference", batch)["engine"] for name, batch in batches}) == 1
        assert score() == (0, {(owner.registered_model, second)})

        before, lake = state_of_mlflow(), Lake.of(owner)
        found = forget(lake, settings, client, tickets(1, seed=11)[0]["ticket_id"], "by hand")
        assert found.all_batches == ["mails"]
        reset(settings, lambda line: None)
        assert (lake.owned_by("mails"), state_of_mlflow()) == ({}, before)
        listed = [json.loads(line) for line in CliRunner().invoke(main, ["models", "--json"]).output.splitlines()]
        versions = [one["version"] for one in listed if one["model"] == owner.registered_model]
        assert versions == ["2", "1"]
    finally:
        file.unlink()


def test_another_dagster_project_materializes_a_pipeline(scored, tmp_path, monkeypatch):
    defs = tmp_path / "another_project" / "defs"
    (defs / "letters").mkdir(parents=True)
    attributes = yaml.safe_load((scored.folder / "pipelines" / "tickets.yaml").read_text())["attributes"]
    attributes |= {"name": "letters", "source": {"dataset": "letters.jsonl"}, "evaluation": {"dataset": "held.jsonl"}}
    del attributes["output"]
    content = {"type": "batch_assets.InferencePipeline", "attributes": attributes}
    (defs / "letters" / "defs.yaml").write_text(yaml.safe_dump(content))
    (defs / "mine.py").write_text(
        "import dagster as dg\n\n\n@dg.asset(deps=[dg.AssetKey(['letters', 'batch_inference'])])\n"
        "def report_on_letters() -> None: ...\n"
    )
    (tmp_path / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "another_project"\n'
    )
    for package in (defs.parent, defs):
        (package / "__init__.py").touch()
    write_json_lines(tmp_path / "letters.jsonl", tickets(3, seed=8))
    write_json_lines(tmp_path / "held.jsonl", tickets(3, seed=9))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(f"{PREFIX}HOME", str(tmp_path / "home"))
    loaded = dg.load_from_defs_folder(path_within_project=defs)
    register_batches(scored.instance, "letters", ["letters"])
    assert materialize(loaded, scored.instance, "letters", LAND_BATCHES, ["letters"]) == []
    graph = loaded.resolve_asset_graph()
    assert dg.AssetKey("report_on_letters") in graph.get_all_asset_keys()
    settings = load_deployment().default
    landed = [row for part in Lake.of(settings).find(_documents("letters")).read("letters") for row in part.to_pylist()]
    assert len(landed) == 3


def _documents(pipeline: str):
    settings = load_deployment().default
    return tables_of(
        settings.model_copy(update={"pipeline": pipeline, "carry": ("customer",), "endpoint": None})
    ).documents
