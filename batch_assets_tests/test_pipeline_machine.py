"""Random sequences of what users, other writers and failures do to one pipeline."""

from pathlib import Path

import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from mlflow import MlflowClient

from batch_assets.lake.contracts import DEFAULT_TABLES
from batch_assets.lake.lake import Lake
from batch_assets.models.tracking import connect
from batch_assets.scoring.completions import CompletionStore
from batch_assets_tests.conftest import settings_for
from batch_assets_tests.pipeline_machine import VERSIONS, FaultyEndpoint, Fuse, PipelineMachine, PlainExecutor


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A registry with versions of a model that no engine loads."""
    client = connect(settings_for(tmp_path_factory.mktemp("machine") / "home"))
    run = client.create_run(client.get_experiment_by_name("batch_assets").experiment_id)
    client.create_registered_model("machine")
    for _ in VERSIONS:
        client.create_model_version("machine", "file:///nowhere", run.info.run_id)
    return client


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    lake = Lake(str(tmp_path_factory.mktemp("tables")))
    for table in DEFAULT_TABLES.all:
        lake.open(table)
    return Path(lake.uri)


@pytest.fixture
def machine(client, tables, monkeypatch):
    fuse = Fuse()
    fuse.around(DeltaTable, "create_write_transaction", monkeypatch)
    fuse.around(CompletionStore, "write", monkeypatch)
    for name in ("set_registered_model_alias", "set_registered_model_tag", "delete_registered_model_tag"):
        fuse.around(MlflowClient, name, monkeypatch)
    PipelineMachine.client, PipelineMachine.fuse, PipelineMachine.faulty = client, fuse, FaultyEndpoint()
    PipelineMachine.executor, PipelineMachine.tables = PlainExecutor(), tables
    return PipelineMachine


def check(machine, sequences: int, steps: int, number: int) -> None:
    run_state_machine_as_test(
        seed(number)(machine),
        settings=settings(
            max_examples=sequences,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_after_any_sequence_and_a_last_run_the_tables_are_right(machine):
    check(machine, sequences=24, steps=7, number=1)


@pytest.mark.proof
@pytest.mark.parametrize("number", range(20))
def test_after_thousands_of_sequences_the_tables_are_right(machine, number):
    check(machine, sequences=250, steps=15, number=number)
