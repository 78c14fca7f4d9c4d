"""A home from an earlier release opens intact: nothing is lost, stale or scored again."""

import json
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest
import yaml

from batch_assets.definitions import build_defs
from batch_assets.graph.partitions import known_batches
from batch_assets.graph.pipeline_names import MATERIALIZE_ALL
from batch_assets.graph.table_checks import contract_check
from batch_assets.lake.contracts import DEFAULT_TABLES, TABLES, Column
from batch_assets.lake.lake import Lake
from batch_assets.lake.staging import stage
from batch_assets.models.registry import RegisteredModel
from batch_assets.models.tracking import connect
from batch_assets.operations import ui
from batch_assets.operations.local_runs import materialize
from batch_assets.operations.status import status_of
from batch_assets.quality.batch_measures import quality_rows
from batch_assets.resources.dagster_storage import open_instance
from batch_assets.resources.registry import ModelRegistry
from batch_assets.settings import DEFAULT_PIPELINE, Settings
from batch_assets.tasks import output_tables
from batch_assets_tests.recorded_home import BATCHES, unpack
from batch_assets_tests.servers import ChatServer, completion

# Number of materializations in the home, by asset: one per batch, and some for assets without batches.
EVENTS = dict.fromkeys(("prod_data", "batch_inference", "ai_query_inference", "summary_quality"), 3)
EVENTS |= {"logged_model": 1, "model_evaluation": 1, "champion_model": 1, "quality_report": 2}


@pytest.fixture
def server():
    with ChatServer(lambda body, number: completion("Something new.")) as server:
        yield server


@pytest.fixture
def settings(tmp_path, server, monkeypatch) -> Settings:
    for name, value in unpack(tmp_path).items():
        monkeypatch.setenv(name, value)
    endpoints = tmp_path / "home" / "endpoints.toml"
    endpoints.write_text(f'[endpoints.counted]\nbase_url = "{server.url}"\nmodel = "m"\n')
    monkeypatch.setenv("BATCH_ASSETS_ENDPOINTS", str(endpoints))
    return Settings(mlflow_tracking_uri=None, mlflow_registry_uri=None)


def events(instance: dg.DagsterInstance) -> dict[str, int]:
    keys = instance.all_asset_keys()
    counted = {key.to_user_string(): len(instance.fetch_materializations(key, limit=100).records) for key in keys}
    return {name: count for name, count in counted.items() if count}


def served_location(settings: Settings) -> str:
    """The name of the code location that a checkout's UI serves, to which switches and cursors belong."""
    command = ui._dagster(settings)
    content = yaml.safe_load(Path(command[command.index("-w") + 1]).read_text())
    return content["load_from"][0]["python_module"]["location_name"]


def test_partitions_events_cursors_and_switches_are_unchanged(settings):
    with open_instance(settings) as instance:
        repository = build_defs(settings=settings).get_repository_def()
        assert known_batches(instance, DEFAULT_PIPELINE) == [*BATCHES]
        assert events(instance) == EVENTS
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.SUCCESS] * 3
        location = served_location(settings)
        states = {
            state.instigator_name: state
            for state in instance.all_instigator_state()
            if state.origin.repository_origin.code_location_origin.location_name == location
        }
        automations = {item.name for item in (*repository.sensor_defs, *repository.schedule_defs)}
        assert set(states) <= automations
        assert states["weekly_upkeep"].status.value == "STOPPED"
        assert json.loads(states["landing_sensor"].instigator_data.cursor) == {"files": {}, "asked": {}}
        assert states["champion_sensor"].instigator_data.cursor == "1"
        resources = {"lake": Lake.of(settings), "registry": ModelRegistry(settings)}
        for name in ("landing_sensor", "prod_data_sensor", "champion_sensor"):
            left = states[name].instigator_data.cursor
            context = dg.build_sensor_context(
                instance=instance, cursor=left, repository_def=repository, resources=resources
            )
            assert list(repository.get_sensor_def(name).evaluate_tick(context).run_requests or []) == []
    assert [(batch.batch, batch.state) for batch in status_of(settings).batches] == [
        (batch, "scored") for batch in BATCHES
    ]


def test_a_full_run_has_nothing_to_score_request_log_or_register(settings, server, spark):
    lake, client = Lake.of(settings), connect(settings)
    tables = {table.name: lake.open(table).version for table in TABLES}
    with open_instance(settings) as instance:
        failures = materialize(
            build_defs(settings=settings), instance, DEFAULT_PIPELINE, MATERIALIZE_ALL, list(BATCHES)
        )
        assert failures == []
    assert {table.name: lake.open(table).version for table in TABLES} == tables
    assert server.requests == []
    model = RegisteredModel.of(client, settings)
    (version,) = model.versions()
    assert model.champion().number == version.number == 1
    assert len(client.search_runs([client.get_experiment_by_name(settings.experiment).experiment_id])) == 1


def test_a_figure_of_a_later_release_reads_as_null_until_a_batch_is_measured_again(settings, monkeypatch):
    lake, columns = Lake.of(settings), DEFAULT_TABLES.quality.columns
    tables = {table.name: lake.open(table).version for table in TABLES}
    figure = Column("bert_score", "double", "Mean BERTScore")
    quality = replace(DEFAULT_TABLES.quality, columns=(*columns[:12], figure, *columns[12:]))
    monkeypatch.setattr(output_tables, "DEFAULT_TABLES", replace(DEFAULT_TABLES, quality=quality))
    output_tables.tables_of.cache_clear()
    try:
        scored = [(batch.batch, batch.state) for batch in status_of(settings).batches]
        assert scored == [(batch, "scored") for batch in BATCHES]
        assert contract_check(dg.AssetKey("summary_quality"), quality).evaluate(lake, None).passed
        rows = {batch: quality_rows(lake.find(quality), batch) for batch in BATCHES}
        assert {row["bert_score"] for batch in BATCHES for row in rows[batch]} == {None}
        assert {table.name: lake.open(table).version for table in TABLES} == tables
        snapshot = lake.open(quality)
        measured = [{**row, "bert_score": 0.5} for row in rows[BATCHES[0]]]
        staged = stage([pa.Table.from_pylist(measured, schema=quality.file_schema)], snapshot.staging_area(BATCHES[0]))
        version = snapshot.replace(BATCHES[0], staged, snapshot.last_commit(BATCHES[0]).metadata)
        assert version == tables[quality.name] + 2
        assert quality_rows(lake.open(quality), BATCHES[0]) == measured
        assert quality_rows(lake.open(quality), BATCHES[1]) == rows[BATCHES[1]]
        assert [(batch.batch, batch.state) for batch in status_of(settings).batches] == scored
    finally:
        output_tables.tables_of.cache_clear()
