"""Files of pipelines: what is accepted, what is refused and how, and what becomes of them in Dagster."""

import json
from pathlib import Path

import dagster as dg
import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from batch_assets import InferencePipeline, Pipeline, build_pipeline, build_pipelines
from batch_assets.cli import main
from batch_assets.definitions import build_defs
from batch_assets.errors import BatchAssetsError
from batch_assets.graph.partitions import busy_batches, known_batches, range_tags, register_batches
from batch_assets.lake.lake import Lake
from batch_assets.operations import preflight
from batch_assets.pipelines.deployment import load_deployment
from batch_assets.pipelines.pipeline import PipelineError, settings_of
from batch_assets.pipelines.schema import pipeline_schema
from batch_assets.pipelines.starter import starter
from batch_assets.settings import DEFAULT_PIPELINE, IN_PIPELINE_FILES, PREFIX, Settings, load_settings
from batch_assets.settings import named as named_setting
from batch_assets.sources.documents import open_documents
from batch_assets.tasks.output_tables import tables_of
from batch_assets_tests.conftest import write_json_lines
from batch_assets_tests.ticket_t5 import LABELS, tickets

TICKETS = {
    "name": "tickets",
    "source": {"dataset": "tickets.jsonl"},
    "columns": {"id": "ticket_id", "text": "{subject}: {body}", "reference": "category", "carry": ["customer"]},
    "task": {"kind": "classification", "labels": list(LABELS)},
    "output": {"table": "ticket_categories", "column": "category"},
}


@pytest.fixture
def folder(tmp_path, home, monkeypatch) -> Path:
    """The folder of pipelines of a deployment."""
    folder = tmp_path / "pipelines"
    folder.mkdir()
    write_json_lines(tmp_path / "tickets.jsonl", tickets(3))
    monkeypatch.setenv(f"{PREFIX}HOME", str(home))
    monkeypatch.setenv(f"{PREFIX}PIPELINES", str(folder))
    return folder


def write(folder: Path, attributes: dict, name: str | None = None) -> Path:
    content = {"type": "batch_assets.InferencePipeline", "attributes": attributes}
    path = folder / f"{name or attributes['name']}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def changed(**sections) -> dict:
    """The tickets with other sections; None leaves one out."""
    return {section: value for section, value in {**TICKETS, **sections}.items() if value is not None}


def test_a_file_adds_a_second_graph_beside_the_first_with_names_of_its_own(folder):
    write(folder, TICKETS)
    repository = build_defs().get_repository_def()
    graph = repository.asset_graph
    theirs = {key.path[-1] for key in graph.get_all_asset_keys() if key.path[0] == "tickets"}
    ours = {"source_dataset", "base_checkpoint", "prod_data", "logged_model", "model_evaluation", "champion_model"}
    assert theirs == ours | {"batch_inference", "answer_quality", "quality_report"}
    assert {graph.get(key).group_name for key in graph.get_all_asset_keys() if key.path[0] == "tickets"} == {"tickets"}
    assert graph.get(dg.AssetKey("prod_data")).partitions_def.name == "batch_assets/batch"
    assert graph.get(dg.AssetKey(["tickets", "prod_data"])).partitions_def.name == "batch_assets/tickets"
    jobs = {job.name for job in repository.get_all_jobs() if job.name.startswith("tickets_")}
    assert jobs == {
        f"tickets_{name}" for name in ("materialize_all", "land_batches", "score_batches", "promote", "rollback")
    }
    assert {"prod_data_sensor", "tickets_prod_data_sensor"} <= {one.name for one in repository.sensor_defs}
    assert "tickets_landing_sensor" not in {one.name for one in repository.sensor_defs}
    assert {"nightly_scoring", "tickets_nightly_scoring"} <= {one.name for one in repository.schedule_defs}
    selected = repository.get_job("tickets_materialize_all").asset_layer.selected_asset_keys
    assert {key.path[0] for key in selected} == {"tickets"}
    assert {len(key.path) for key in repository.get_job("materialize_all").asset_layer.selected_asset_keys} == {1}


def test_the_tables_of_a_pipeline_have_the_names_and_columns_that_its_file_gives_them(folder):
    write(folder, TICKETS)
    tables = tables_of(load_deployment().pipeline("tickets"))
    names = [table.name for table in tables.all]
    assert names == ["tickets_documents", "tickets_rejected", "ticket_categories", "tickets_quality"]
    assert tables.documents.column_names[:4] == ["id", "document", "reference", "customer"]
    assert tables.scored.output_column == "category"
    assert {"accuracy", "label_histogram", "outcomes", "answers"} <= set(tables.quality.column_names)
    words = " ".join(column.description for table in tables.all for column in table.columns)
    assert "summar" not in words.lower()
    assert all(table.owner == "tickets" for table in tables.all)


@pytest.mark.parametrize(
    ("sections", "at", "message"),
    [
        ({"source": None}, "attributes:", "name exactly one kind of source: dataset, landing, "),
        ({"source": {"dataset": "a.csv", "landing": "in"}}, "source:", "name exactly one kind of source"),
        ({"source": {"table": "t"}}, "source:", "needs source.batch_by: a column, or commit"),
        ({"source": {"dataset": "a.csv", "batch_by": "b"}}, "batch_by:", "source.batch_by is only for a table that is"),
        (
            {"source": {"table": "t", "batch_by": "commit", "every": "day"}},
            "every:",
            "source.every is only for a table",
        ),
        (
            {"source": {"table": "a.b.c.d", "batch_by": "b"}},
            "table:",
            "use table, schema.table or catalog.",
        ),
        ({"source": {"table": "../t", "batch_by": "b"}}, "table:", "is not a valid name"),
        ({"source": {"url": "s3://k:s@b/t", "batch_by": "b"}}, "url:", "remove the credentials"),
        (
            {"source": {"pipeline": "other"}},
            "pipeline:",
            "unknown or invalid pipeline other (known: summaries, letters)",
        ),
        ({"source": {"pipeline": "tickets"}}, "pipeline:", "tickets reads tickets"),
        ({"source": {"datset": "a"}}, "datset:", "source.datset is not a field; did you mean source.dataset?"),
        ({"sources": {"dataset": "a.csv"}}, "sources:", "sources is not a field; did you mean source?"),
        ({"task": {"kind": "classify"}}, "kind:", "task.kind: use summarization, classification, extraction"),
        ({"task": {"kind": "classification"}}, "task:", "task.labels and the task classification need each other"),
        (
            {"task": {"kind": "classification", "labels": [True, False]}},
            "labels:",
            "task.labels: use a list of at least",
        ),
        ({"task": {"kind": "classification", "labels": ["a", "A. "]}}, "labels:", "two labels differ at most in case"),
        ({"task": {"kind": "extraction", "schema": "name STRNG"}}, "task:", "task.schema"),
        ({"task": {"kind": "generation"}}, "task:", "the task generation needs a task.prompt"),
        ({"columns": {"text": "{a.b}"}}, "text:", "columns.text: use only the names of columns in braces, such as {a}"),
        ({"columns": {"text": "{a!r}"}}, "text:", "columns.text: use only the names of columns"),
        (
            {"columns": {"text": "{a}", "reference": "a"}},
            "text:",
            "the model must not see the reference: remove {a}",
        ),
        ({"columns": {"carry": ["ID"]}}, "task:", "would have two columns id"),
        ({"checks": {"drift": "high"}}, "drift:", "checks.drift: Input should be a valid number"),
        ({"schedule": "daily"}, "schedule:", "schedule: use a cron expression"),
        ({"name": "Tickets"}, "name:", "name: use 1 to 50 characters of a-z, 0-9 and _, a letter first"),
        ({"name": "grounding"}, "name:", "name: this name is reserved"),
        ({"output": {"table": "m4_1_prod_data"}}, "table:", "main.default.m4_1_prod_data is also that of the default"),
    ],
)
def test_an_invalid_file_is_refused_with_its_line_and_field_and_the_others_load(folder, sections, at, message):
    file = write(folder, changed(**sections), "broken")
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if text.strip().startswith(at))
    write(folder, changed(name="letters", output=None))
    deployment = load_deployment()
    assert [one.pipeline for one in deployment.pipelines] == [DEFAULT_PIPELINE, "letters"]
    (problem,) = deployment.problems
    assert problem.file == file
    assert message in problem.message
    assert problem.message.startswith(f"{file}, line {line}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("type: batch_assets.InferencePipeline\nattributes: {name: [}", "line 2 is not YAML"),
        (
            "type: batch_assets.InferencePipeline\nattributes:\n  name: a\n  name: b",
            "line 4 is not YAML: the field name",
        ),
        ("type: dagster.Something\nattributes: {}", "line 1: the file must begin with type: batch_assets"),
        ("- a list", "line 1: the file must begin with type"),
        ("", "line 1: the file must begin with type"),
        ("type: batch_assets.InferencePipeline", "the fields of the pipeline must be below attributes"),
        ("type: batch_assets.InferencePipeline\nattributes: {source: {dataset: a}}", "name: give the pipeline a name"),
        (b"\xff\xfe\x00", "it is not UTF-8"),
    ],
)
def test_a_file_that_is_no_pipeline_is_refused(folder, content, message):
    (folder / "odd.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    (problem,) = load_deployment().problems
    assert message in problem.message


def test_an_invalid_file_is_a_failing_check_in_dagster_and_shows_in_status_and_check(folder):
    write(folder, changed(task={"kind": "classify"}), "broken")
    graph = build_defs().resolve_asset_graph()
    (check,) = [key for key in graph.asset_check_keys if key.asset_key.path[0] == "invalid_pipelines"]
    assert check.asset_key.path[1] == "broken_1"
    run = CliRunner().invoke(main, ["status"])
    assert "invalid pipeline: " in run.output
    assert "line 13: task.kind" in run.output
    checked = CliRunner().invoke(main, ["check"])
    assert checked.exit_code == 1
    assert "ok       summaries" in checked.output
    assert "problem  tickets: " in checked.output


def test_pipelines_that_would_write_to_the_same_place_are_refused_whatever_the_case(folder):
    first = write(folder, TICKETS, "a")
    write(folder, changed(name="letters", output={"table": "TICKET_Categories"}), "b")
    write(folder, changed(output=None), "c")
    deployment = load_deployment()
    assert [one.pipeline for one in deployment.pipelines] == [DEFAULT_PIPELINE, "tickets"]
    table, name = (problem.message for problem in deployment.problems)
    assert f"its table main.default.ticket_categories is also that of {first}" in table
    assert f"is also that of {first}" in name


LETTERS = {"name": "letters", "source": {"landing": "letters"}, "model": {"pipeline": "tickets", "rescore": "all"}}


def test_a_pipeline_can_use_the_model_of_another_one_and_has_the_rest_of_its_own(folder):
    write(folder, changed(model={"max_length": 7, "device_map": "cpu", "engine": "mlflow"}), "z")
    task = {"kind": "classification", "labels": list(LABELS)}
    write(folder, {**LETTERS, "task": task, "model": {**LETTERS["model"], "engine": "transformers"}}, "a")
    write(folder, {**LETTERS, "name": "reviews", "source": {"landing": "reviews"}, "model": {"pipeline": "summaries"}})
    deployment = load_deployment()
    assert deployment.problems == []
    owner, letters, reviews = (deployment.pipeline(name) for name in ("tickets", "letters", "reviews"))
    assert (letters.registered_model, letters.experiment) == (owner.registered_model, owner.experiment)
    assert (letters.labels, letters.max_length, letters.device_map) == (owner.labels, 7, "cpu")
    assert (letters.engine, letters.rescore, owner.engine, owner.rescore) == ("transformers", "all", "mlflow", "none")
    assert reviews.registered_model == "main.default.summarizer"
    assert named_setting(letters, "dtype") == "model.dtype of the pipeline tickets"
    assert named_setting(letters, "engine") == "model.engine of the pipeline letters"
    assert named_setting(reviews, "dtype") == "BATCH_ASSETS_DTYPE"

    repository = build_defs().get_repository_def()
    graph = repository.asset_graph
    names = {key.path[-1] for key in graph.get_all_asset_keys() if key.path[0] == "letters"}
    assert names == {"source_dataset", "prod_data", "batch_inference", "answer_quality", "quality_report"}
    for name, champion in (("letters", ["tickets", "champion_model"]), ("reviews", ["champion_model"])):
        parents = graph.get(dg.AssetKey([name, "batch_inference"])).parent_keys
        assert parents == {dg.AssetKey([name, "prod_data"]), dg.AssetKey(champion)}
    jobs = {job.name for job in repository.get_all_jobs() if job.name.startswith("letters_")}
    assert jobs == {f"letters_{name}" for name in ("materialize_all", "land_batches", "take_files", "score_batches")}
    selected = repository.get_job("letters_materialize_all").asset_layer.selected_asset_keys
    assert {key.path[0] for key in selected} == {"letters"}
    sensors = {sensor.name for sensor in repository.sensor_defs if sensor.name.startswith("letters_")}
    assert sensors == {"letters_landing_sensor", "letters_prod_data_sensor"}
    assert not [key for key in graph.asset_check_keys if key.asset_key == dg.AssetKey(["letters", "champion_model"])]


@pytest.mark.parametrize(
    ("sections", "at", "message"),
    [
        (
            {"model": {"pipeline": "letters"}},
            "pipeline:",
            "model.pipeline: this is the pipeline itself; name another one, or remove",
        ),
        (
            {"model": {"pipeline": "tikets"}},
            "pipeline:",
            "model.pipeline: unknown pipeline tikets; name summaries or tickets",
        ),
        ({"model": {"pipeline": ["tickets"]}}, "pipeline:", "model.pipeline: unknown pipeline ['tickets']"),
        (
            {"model": {"pipeline": "mails"}},
            "pipeline:",
            "mails can't be used: it uses that of tickets",
        ),
        ({"model": {"pipeline": "broken"}}, "pipeline:", "broken can't be used: its file is not valid; fix it first"),
        (
            {"model": {"pipeline": "tickets", "checkpoint": "smollm2"}},
            "checkpoint:",
            "model.checkpoint: the pipeline tickets decides this; remove it, or remove model.pipeline",
        ),
        ({"model": {"pipeline": "tickets", "name": "mine"}}, "name: mine", "model.name: the pipeline tickets decides"),
        ({"model": {"pipeline": "tickets", "dtype": "int8"}}, "dtype:", "model.dtype: the pipeline tickets decides"),
        ({"evaluation": {"rows": 3}}, "rows:", "evaluation.rows: the pipeline tickets decides this"),
        (
            {"task": {"kind": "classification", "labels": ["billing", "bug"]}},
            "labels:",
            "task.labels: it differs from that of the pipeline tickets, whose model is used; remove the section task",
        ),
        ({"task": {"kind": "summarization"}}, "kind:", "task.kind: it differs from that of the pipeline tickets"),
    ],
)
def test_a_shared_model_without_a_valid_owner_or_with_settings_of_the_owner_is_refused(folder, sections, at, message):
    file = write(folder, {**LETTERS, **sections}, "a")
    write(folder, TICKETS)
    write(folder, {**LETTERS, "name": "mails", "source": {"landing": "mails"}})
    broken = write(folder, changed(name="broken", source={"dataset": "a.csv", "limit": 0}, output=None))
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if text.strip().startswith(at))
    deployment = load_deployment()
    assert [one.pipeline for one in deployment.pipelines] == [DEFAULT_PIPELINE, "tickets", "mails"]
    (refused,) = [problem.message for problem in deployment.problems if problem.file != broken]
    assert message in refused
    assert refused.startswith(f"{file}, line {line}: ")


def test_the_pipeline_that_ships_has_a_model_of_its_own(folder):
    write(folder, TICKETS)
    write(folder, {"name": DEFAULT_PIPELINE, "model": {"pipeline": "tickets"}})
    (problem,) = load_deployment().problems
    assert "line 5: model.pipeline: the pipeline summaries has a model of its own" in problem.message


def test_a_pipeline_in_python_can_use_the_model_of_one_that_is_built_with_it(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    graph = build_pipelines([Pipeline(**LETTERS), Pipeline(**TICKETS)]).resolve_asset_graph()
    assert (
        dg.AssetKey(["tickets", "champion_model"]) in graph.get(dg.AssetKey(["letters", "batch_inference"])).parent_keys
    )
    with pytest.raises(PipelineError, match="unknown pipeline tickets; no other pipeline can be used here"):
        build_pipeline(Pipeline(**LETTERS))


def test_commands_about_a_shared_model_say_whose_it_is(folder):
    write(folder, TICKETS)
    write(folder, changed(name="letters", task=None, output=None, model={"pipeline": "tickets"}))
    for words in (["promote", "1"], ["rollback"]):
        run = CliRunner().invoke(main, [*words, "--pipeline", "letters"])
        assert run.exit_code == 2
        assert "only that pipeline promotes it: use --pipeline tickets" in run.output
    run = CliRunner().invoke(main, ["run", "letters"])
    assert (run.exit_code, "run 'batch-assets run tickets' first" in run.output) == (2, True)
    tried = CliRunner().invoke(main, ["try", "x", "--pipeline", "letters"])
    assert "main.default.tickets has no champion yet: run 'batch-assets run tickets' first" in tried.output
    found = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).output)["findings"]
    (model,) = [one for one in found if one["what"] == "letters: model"]
    assert (model["level"], model["remedy"]) == ("warning", "run 'batch-assets run tickets' first")
    data = [one["found"] for one in found if one["what"] == "letters: data set"]
    assert data == [f"{folder.parent / 'tickets.jsonl'} for scoring"]


def test_environment_variables_configure_the_default_pipeline_only_and_win_over_its_file(folder, monkeypatch):
    write(folder, {"name": DEFAULT_PIPELINE, "source": {"limit": 7, "split": "validation"}, "checks": {"drift": 0.5}})
    write(folder, TICKETS)
    monkeypatch.setenv(f"{PREFIX}LIMIT", "3")
    monkeypatch.setenv(f"{PREFIX}RESCORE", "all")
    deployment = load_deployment()
    default, theirs = deployment.pipelines
    assert (default.limit, default.split, default.drift, default.rescore) == (3, "validation", 0.5, "all")
    assert (theirs.limit, theirs.split, theirs.drift, theirs.rescore) == (None, "test", 0.25, "none")
    assert (theirs.home, theirs.model_name, theirs.experiment) == (default.home, "tickets", "batch_assets/tickets")
    assert theirs.endpoint is None


def test_the_default_pipeline_has_no_room_for_other_tables(folder):
    write(folder, {"name": DEFAULT_PIPELINE, "source": {"dataset": "aclsum"}, "output": {"table": "mine"}})
    (problem,) = load_deployment().problems
    assert "output.table: the tables of the pipeline summaries are fixed" in problem.message


def test_relative_paths_start_at_the_folder_above_the_files(folder, tmp_path):
    write(folder, changed(evaluation={"dataset": "tickets.jsonl"}, model={"checkpoint": "./model"}))
    write(folder, changed(name="letters", source={"landing": "in"}, output=None))
    assert load_deployment().pipeline("letters").landing_folder == str(tmp_path / "in")
    settings = load_deployment().pipeline("tickets")
    assert settings.dataset == str(tmp_path / "tickets.jsonl")
    assert settings.evaluation_dataset == str(tmp_path / "tickets.jsonl")
    assert settings.model == str(tmp_path / "model")


def test_commands_ask_for_the_pipeline_if_there_are_several(folder):
    write(folder, TICKETS)
    for words in (["rescore", "--all", "--yes"], ["rollback"], ["promote", "1"], ["try", "x"], ["forget", "x"]):
        run = CliRunner().invoke(main, words)
        assert (run.exit_code, "add --pipeline summaries or tickets" in run.output) == (2, True), words
    unknown = CliRunner().invoke(main, ["run", "letters"])
    assert (unknown.exit_code, "unknown pipeline letters: use summaries or tickets" in unknown.output) == (
        2,
        True,
    )
    no_landing = CliRunner().invoke(main, ["land", "--pipeline", "tickets", str(folder.parent / "tickets.jsonl")])
    assert "the pipeline tickets has no landing folder: its source is a data set" in no_landing.output


def test_a_new_file_is_valid_and_its_schema_accepts_it_and_refuses_unknown_fields(folder):
    made = CliRunner().invoke(main, ["new", "letters"])
    assert made.exit_code == 0, made.output
    content = yaml.safe_load((folder / "letters.yaml").read_text())
    schema = json.loads((folder / "pipeline.schema.json").read_text())
    assert schema == json.loads(json.dumps(pipeline_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(content, schema)
    assert load_deployment().pipeline("letters").labels == tuple((label, None) for label in LABELS)
    content["attributes"]["task"]["lables"] = ["a", "b"]
    with pytest.raises(jsonschema.ValidationError, match="lables"):
        jsonschema.validate(content, schema)
    del content["attributes"]["task"]["lables"]
    content["attributes"]["model"] = {"pipeline": "tickets", "rescore": "all"}
    jsonschema.validate(content, schema)
    content["attributes"]["model"]["checkpoint"] = "smollm2"
    with pytest.raises(jsonschema.ValidationError, match="False schema"):
        jsonschema.validate(content, schema)
    again = CliRunner().invoke(main, ["new", "letters"])
    assert (again.exit_code, "there is a pipeline letters already" in again.output) == (2, True)
    odd = CliRunner().invoke(main, ["new", "Letters!"])
    assert (odd.exit_code, "can't be the name of a pipeline" in odd.output) == (2, True)


def test_every_setting_of_a_pipeline_is_in_the_schema_and_exists():
    assert set(IN_PIPELINE_FILES) <= set(Settings.model_fields)
    attributes = pipeline_schema()["properties"]["attributes"]["properties"]
    for path in IN_PIPELINE_FILES.values():
        section, _, field = path.partition(".")
        assert section in attributes
        assert not field or field in attributes[section]["properties"]


def test_runs_of_one_pipeline_do_not_make_batches_of_another_busy():
    with dg.DagsterInstance.ephemeral() as instance:
        for pipeline in (DEFAULT_PIPELINE, "tickets"):
            register_batches(instance, pipeline, ["monday", "tuesday"])
        job = dg.define_asset_job("tickets_score_batches").name
        instance.create_run_for_job(dg.job(name=job)(lambda: None), tags=range_tags(["monday", "tuesday"]))
        assert busy_batches(instance, DEFAULT_PIPELINE) == set()
        assert busy_batches(instance, "tickets") == {"monday", "tuesday"}
        assert known_batches(instance, DEFAULT_PIPELINE) == known_batches(instance, "tickets")


def test_a_pipeline_in_python_has_the_same_fields_and_can_be_merged_with_other_assets(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)

    @dg.asset(deps=[dg.AssetKey(["tickets", "batch_inference"])])
    def report_on_tickets() -> None: ...

    pipeline = Pipeline(**TICKETS)
    theirs = dg.Definitions(assets=[report_on_tickets])
    lake = object()
    merged = dg.Definitions.merge(theirs, build_pipeline(pipeline, resource_overrides={"lake": lake}))
    graph = merged.resolve_asset_graph()
    assert graph.get(dg.AssetKey("report_on_tickets")).parent_keys == {dg.AssetKey(["tickets", "batch_inference"])}
    assert merged.resources["lake"] is lake
    assert dg.AssetKey("prod_data") not in graph.get_all_asset_keys()
    written = settings_of(TICKETS, load_settings(), Path.cwd())
    assert pipeline.settings(load_settings()) == written
    with pytest.raises(PipelineError, match="is also that of the pipeline tickets"):
        build_pipelines([pipeline, pipeline])


@pytest.fixture
def project(folder, monkeypatch):
    """Loads a Dagster project with a component for each pipeline; each project gets a package of its own."""
    monkeypatch.syspath_prepend(folder.parent)

    def load(package: str, *pipelines: dict) -> dg.Definitions:
        defs = folder.parent / package / "defs"
        for number, attributes in enumerate(pipelines):
            (defs / f"number_{number}").mkdir(parents=True)
            write(defs / f"number_{number}", attributes, "defs")
        (defs.parent / "__init__.py").touch()
        (folder.parent / "pyproject.toml").write_text(
            f'[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "{package}"\n'
        )
        return dg.load_from_defs_folder(path_within_project=defs)

    return load


def test_the_component_loads_from_another_dagster_project_with_templates_off_in_prompts(folder, project, monkeypatch):
    monkeypatch.setenv("DATA", str(folder.parent / "tickets.jsonl"))
    monkeypatch.setenv("SECRET", "open sesame")
    task = {"kind": "generation", "prompt": "{{ env.SECRET }} {document}"}
    sections = {"output": None, "source": {"dataset": "{{ env.DATA }}"}, "task": task}
    letters = {**changed(name="letters", **sections), "model": {"pipeline": "tickets"}}
    del letters["task"]
    loaded = project("theirs", letters, changed(**sections), changed(name="mails", **sections))
    graph = loaded.resolve_asset_graph()
    assert {key.path[0] for key in graph.get_all_asset_keys()} == {"tickets", "letters", "mails"}
    parents = graph.get(dg.AssetKey(["letters", "batch_inference"])).parent_keys
    assert dg.AssetKey(["tickets", "champion_model"]) in parents
    assert dg.AssetKey(["letters", "champion_model"]) not in graph.get_all_asset_keys()
    metadata = graph.get(dg.AssetKey(["tickets", "source_dataset"])).metadata
    assert metadata["data set"] == str(folder.parent / "tickets.jsonl")
    assert "open sesame" not in str(vars(InferencePipeline))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"output": {"table": "Ticket_categories"}}, "its table main.default.ticket_categories"),
        ({"name": "tickets", "output": None}, "its name tickets"),
        ({"model": {"name": "tickets"}, "output": None}, "its model main.default.tickets"),
    ],
    ids=["table", "name", "model"],
)
def test_components_of_one_project_that_collide_are_refused_with_both_files(folder, project, sections, message):
    package = f"colliding_{'_'.join(sections)}"
    with pytest.raises(Exception) as refused:
        project(package, TICKETS, changed(**{"name": "letters", **sections}))
    first, second = (folder.parent / package / "defs" / f"number_{n}" / "defs.yaml" for n in range(2))
    assert f"{second}: " in str(refused.value.__cause__)
    assert f"{message} is also that of {first}" in str(refused.value.__cause__)


def test_a_component_that_collides_with_a_file_in_the_folder_of_pipelines_is_refused(folder, project):
    file = write(folder, changed(name="letters", source={"landing": "in"}))
    with pytest.raises(Exception) as refused:
        project("beside_the_folder", TICKETS)
    assert f"its table main.default.ticket_categories is also that of {file}" in str(refused.value.__cause__)
    alone = InferencePipeline(TICKETS, folder.parent)
    keys = dg.build_defs_for_component(alone).resolve_asset_graph().get_all_asset_keys()
    assert dg.AssetKey(["tickets", "prod_data"]) in keys


def test_check_resolves_the_templates_of_a_component_but_not_those_of_a_file_in_the_folder(folder, monkeypatch):
    checked = []
    monkeypatch.setattr(preflight, "check_pipeline", checked.append)
    monkeypatch.setenv("DATA", str(folder.parent / "tickets.jsonl"))
    prompt = {"kind": "generation", "prompt": "{{ env.DATA }} {document}"}
    attributes = changed(source={"dataset": "{{ env('DATA') }}"}, task=prompt, output=None)
    file = write(folder.parent, attributes, "defs")
    run = CliRunner().invoke(main, ["check", str(file)])
    assert (run.exit_code, run.output) == (0, "ok       tickets\n")
    ours = CliRunner().invoke(main, ["check", str(write(folder, attributes))])
    assert ours.exit_code == 0
    assert [(one.dataset, one.prompt) for one in checked] == [
        (str(folder.parent / "tickets.jsonl"), prompt["prompt"]),
        ("{{ env('DATA') }}", prompt["prompt"]),
    ]
    monkeypatch.delenv("DATA")
    run = CliRunner().invoke(main, ["check", str(file)])
    assert run.exit_code == 1
    assert "problem  defs: a template can't be resolved: Environment variable DATA is not set" in run.output


def test_a_scaffolded_file_is_a_valid_pipeline(folder):
    attributes = yaml.safe_load(starter("letters"))["attributes"]
    assert settings_of(attributes, load_settings(), folder.parent).pipeline == "letters"


def test_an_unknown_task_class_of_one_pipeline_leaves_the_others_running(folder):
    write(folder, changed(task={"kind": "nowhere:Nothing"}, output=None))
    deployment = load_deployment()
    assert [one.pipeline for one in deployment.pipelines] == [DEFAULT_PIPELINE]
    assert "can't be used: No module named 'nowhere'" in deployment.problems[0].message
    with pytest.raises(BatchAssetsError, match="nowhere"):
        deployment.pipeline("tickets")


def test_a_missing_model_or_source_of_one_pipeline_leaves_the_definitions_and_commands_of_the_others(folder):
    write(folder, changed(model={"checkpoint": "./nowhere"}, source={"dataset": "nowhere/*.jsonl"}))
    keys = build_defs().resolve_asset_graph().get_all_asset_keys()
    assert {dg.AssetKey("prod_data"), dg.AssetKey(["tickets", "prod_data"])} <= keys
    assert CliRunner().invoke(main, ["status"]).exit_code == 0
    checked = CliRunner().invoke(main, ["check"])
    assert "ok       summaries" in checked.output
    assert "problem  tickets: " in checked.output


def test_the_file_of_the_pipeline_that_ships_says_what_the_defaults_are(folder):
    shipped = Path(__file__).parent.parent / "pipelines" / f"{DEFAULT_PIPELINE}.yaml"
    (folder / shipped.name).write_text(shipped.read_text())
    assert load_deployment().problems == []
    expected = load_settings().model_dump(exclude={"written_source"})
    assert load_deployment().pipelines[0].model_dump(exclude={"written_source"}) == expected


def test_the_pipeline_that_ships_cannot_be_reset(folder):
    run = CliRunner().invoke(main, ["reset", DEFAULT_PIPELINE, "--yes"])
    assert (run.exit_code, "the pipeline summaries can't be reset" in run.output) == (2, True)


def test_a_pipeline_that_reads_another_one_has_its_answers_as_texts_and_waits_for_its_table(folder):
    write(folder, TICKETS)
    write(folder, changed(name="second", source={"pipeline": "tickets"}, columns=None, output=None))
    write(folder, changed(name="third", source={"pipeline": "second"}, columns={"text": "document"}, output=None))
    deployment = load_deployment()
    first, second, third = (deployment.pipeline(name) for name in ("tickets", "second", "third"))
    assert second.upstream_table == Lake.of(first).table_uri(tables_of(first).scored)
    assert (second.text, third.text) == ("category", "document")
    assert [table.name for table in tables_of(second).all] == ["second_predictions", "second_quality"]
    documents = open_documents(Lake.of(second), second, tables_of(second))
    assert not documents.exists
    assert documents.batches() == []
    graph = build_defs().resolve_asset_graph()
    assert graph.get(dg.AssetKey(["third", "prod_data"])).parent_keys == {dg.AssetKey(["second", "batch_inference"])}


def test_pipelines_that_read_the_same_table_share_its_asset_and_an_asset_of_the_project_replaces_it(folder):
    in_place = {"table": "support.tickets", "batch_by": "day"}
    write(folder, changed(source=in_place, name="one", output=None))
    write(folder, changed(source=in_place, name="two", output=None))
    write(folder, changed(source={**in_place, "asset_key": "support/tickets"}, name="three", output=None))
    graph = build_defs().resolve_asset_graph()
    parents = {name: graph.get(dg.AssetKey([name, "prod_data"])).parent_keys for name in ("one", "two", "three")}
    shared = {dg.AssetKey(["source_tables", "support", "tickets"])}
    assert parents == {"one": shared, "two": shared, "three": {dg.AssetKey(["support", "tickets"])}}


def test_odd_yaml_and_names_stop_neither_the_commands_nor_the_code_location(folder):
    head = "type: batch_assets.InferencePipeline\nattributes:\n  source: {dataset: a.csv}\n"
    contents = ["  1: x", "  ? [a, b]\n  : c", "  name: 2024-99-99", "  name: 1", "  name: batch", "  name: t\n  on: x"]
    for number, content in enumerate(contents):
        (folder / f"ödd {number}.yaml").write_text(head + content)
    write(folder, changed(name="a"), "a-b")
    write(folder, changed(name="b", schedule="99 2 * * *", output=None), "a_b")
    deployment = load_deployment()
    assert [one.pipeline for one in deployment.pipelines] == [DEFAULT_PIPELINE, "a", "b"]
    assert len(deployment.problems) == len(contents)
    graph = build_defs().resolve_asset_graph()
    invalid = [key for key in graph.get_all_asset_keys() if key.path[0] == "invalid_pipelines"]
    # Only Dagster rejects the minute 99.
    assert len(invalid) == len(contents) + 1
    assert dg.AssetKey(["a", "prod_data"]) in graph.get_all_asset_keys()
    assert dg.AssetKey(["b", "prod_data"]) not in graph.get_all_asset_keys()
    assert "problem  b: Dagster refuses the pipeline b" in CliRunner().invoke(main, ["check"]).output


def test_an_invalid_file_of_the_default_pipeline_keeps_it_from_running_with_other_settings(folder):
    file = write(folder, {"name": DEFAULT_PIPELINE, "source": {"dataset": "aclsum", "limit": 0}})
    write(folder, TICKETS)
    deployment = load_deployment()
    assert [one.pipeline for one in deployment.pipelines] == ["tickets"]
    run = CliRunner().invoke(main, ["run"])
    assert (run.exit_code, f"{file}, line 6: source.limit: Input should be greater" in run.output) == (2, True)
    named = CliRunner().invoke(main, ["rollback"])
    assert "add --pipeline tickets or summaries" in named.output


def test_landing_folders_within_each_other_and_a_table_used_twice_are_refused(folder):
    write(folder, changed(name="a", source={"landing": "in"}, output=None))
    write(folder, changed(name="b", source={"landing": "in/b"}, output=None))
    write(folder, changed(name="c", output={"table": "c_documents"}))
    deployment = load_deployment()
    assert [one.pipeline for one in deployment.pipelines] == [DEFAULT_PIPELINE, "a"]
    nested, twice = (problem.message for problem in deployment.problems)
    assert "is also that of" in nested
    assert "output.table: it has another table main.default.c_documents" in twice


def test_carried_columns_keep_their_names_and_references_are_not_guessed(folder):
    columns = {"text": "{title} {summary}", "carry": ["summaries", "batches"]}
    write(folder, changed(columns=columns, output={"column": "summary_label"}, name="news_summary"))
    (settings,) = load_deployment().pipelines[1:]
    tables = tables_of(settings)
    assert settings.reference is None
    assert {"summaries", "batches"} <= set(tables.scored.column_names)
    described = " ".join(column.description for column in tables.scored.columns)
    assert "summary_label is null" in described
    assert "label_label" not in described
    assert "rows of news_summary_documents" in tables.rejected.description


def test_messages_about_a_pipeline_name_the_fields_of_its_file(folder):
    write(folder, changed(model={"engine": "mlflow"}))
    settings = load_deployment().pipeline("tickets")
    assert named_setting(settings, "engine") == "model.engine of the pipeline tickets"
    assert named_setting(settings, "spark_master") == "BATCH_ASSETS_SPARK_MASTER"
    assert named_setting(load_settings(), "engine") == "BATCH_ASSETS_ENGINE"
