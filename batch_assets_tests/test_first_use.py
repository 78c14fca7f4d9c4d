"""State that several commands first use at the same moment, or that a killed command left unfinished."""

import multiprocessing
import shutil
import signal
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest
import yaml
from alembic.util.exc import CommandError
from click.testing import CliRunner
from dagster._core.storage.runs import RunStorageSqlMetadata
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError, ProgrammingError

from batch_assets.cli import main
from batch_assets.errors import BatchAssetsError
from batch_assets.graph.partitions import known_batches, register_batches
from batch_assets.lake.contracts import TABLES
from batch_assets.lake.lake import Lake
from batch_assets.locks import is_held
from batch_assets.models import tracking
from batch_assets.models.tracking import connect, existing_client
from batch_assets.operations import land
from batch_assets.resources.dagster_storage import existing_instance, open_instance
from batch_assets.settings import DEFAULT_PIPELINE
from batch_assets.sources.configured import landing_folder
from batch_assets.sources.landing_folder import Group, LandingFolder
from batch_assets_tests.conftest import settings_for, write_json_lines
from batch_assets_tests.delta_processes import kill_this_process, race

# Forked from a server that has done the imports, so the processes only have to use the state.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["deltalake", __name__])

DATABASES = ("history/runs.db", "history/runs/index.db", "schedules/schedules.db")
# The revision that Dagster assumes for a database with tables but no revision.
OLD = "5771160a95ad"


def rows(database: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(database)) as connection, connection:
        return connection.execute(query).fetchall()


def revisions(home: Path) -> list[list[str]]:
    """The schema revisions recorded in each of Dagster's databases."""
    folder = home / "dagster"
    return [[one for (one,) in rows(folder / name, "SELECT version_num FROM alembic_version")] for name in DATABASES]


def steps(home: Path) -> list[int]:
    """The number of further setup steps that each of Dagster's databases records as done."""
    return [len(rows(home / "dagster" / name, "SELECT name FROM secondary_indexes")) for name in DATABASES]


@pytest.fixture(scope="module")
def whole_home(tmp_path_factory) -> Path:
    """A home created by one command, with a batch, a run and an event, for tests to copy and break."""
    home = tmp_path_factory.mktemp("whole") / "home"
    with open_instance(settings_for(home)) as instance:
        register_batches(instance, DEFAULT_PIPELINE, ["a"])
        instance.add_run(dg.DagsterRun(job_name="land_batches", run_id="r"))
        instance.report_runless_asset_event(dg.AssetMaterialization("prod_data", partition="a"))
    return home


@pytest.fixture
def made_home(home, whole_home) -> Path:
    return Path(shutil.copytree(whole_home, home))


def assert_nothing_is_lost(home: Path) -> None:
    with existing_instance(settings_for(home)) as instance:
        assert known_batches(instance, DEFAULT_PIPELINE) == ["a"]
        assert [run.run_id for run in instance.get_runs()] == ["r"]
        assert instance.get_latest_materialization_event(dg.AssetKey("prod_data")) is not None


def use_dagster(home: Path, batch: str) -> list[str]:
    with open_instance(settings_for(home)) as instance:
        register_batches(instance, DEFAULT_PIPELINE, ["common", batch])
        return known_batches(instance, DEFAULT_PIPELINE)


def look_at_dagster(home: Path) -> bool:
    with existing_instance(settings_for(home)) or dg.DagsterInstance.ephemeral() as instance:
        return known_batches(instance, DEFAULT_PIPELINE) is not None


def use_tables(home: Path) -> list[str]:
    lake = Lake.of(settings_for(home))
    return [lake.open(table).table_id for table in TABLES]


@pytest.mark.parametrize("is_half_made", [False, True], ids=["new", "half-made by an earlier version"])
def test_processes_that_first_use_a_home_at_the_same_time_all_find_it_complete(home, whole_home, is_half_made):
    if is_half_made:
        (home / "dagster").mkdir(parents=True)
        (home / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        half(home / "dagster" / DATABASES[0], RunStorageSqlMetadata)
        half(home / "dagster" / DATABASES[1], None)
    uses = [(use_dagster, home, "a"), (use_dagster, home, "b"), (look_at_dagster, home)]
    results = race([*uses, (use_tables, home), (use_tables, home)], forks)
    assert not [result for result in results if isinstance(result, Exception)]
    assert [{"a", "common"} <= set(results[0]), {"b", "common"} <= set(results[1])] == [True, True]
    assert results[3] == results[4]
    assert sorted(use_dagster(home, "a")) == ["a", "b", "common"]
    assert (revisions(home), steps(home)) == (revisions(whole_home), steps(whole_home))


def test_a_first_use_that_was_killed_repeatedly_is_completed(home, whole_home):
    for file in ("dagster.yaml", *DATABASES):
        assert is_killed(home, Path(file).name)
        assert not (home / "dagster" / file).exists()
        assert existing_instance(settings_for(home)) is None
    assert sorted(use_dagster(home, "a")) == ["a", "common"]
    assert (revisions(home), steps(home)) == (revisions(whole_home), steps(whole_home))
    assert yaml.safe_load((home / "dagster" / "dagster.yaml").read_text())["concurrency"]["pools"]
    assert [path.name for path in (home / "dagster").glob(".*")] == [".lock"]


def is_killed(home: Path, name: str) -> bool:
    """Whether a process that uses Dagster's storage is killed just before it moves the named file into place."""
    process = forks.Process(target=die_before_renaming, args=(home, name))
    process.start()
    process.join(60)
    return process.exitcode == -signal.SIGKILL


def die_before_renaming(home: Path, name: str) -> None:
    rename = Path.rename

    def rename_or_die(path: Path, target: Path) -> Path:
        if path.name == name:
            kill_this_process()
        return rename(path, target)

    Path.rename = rename_or_die  # type: ignore[method-assign]
    use_dagster(home, "a")


def test_simultaneous_first_users_of_the_mlflow_store_find_it_complete_after_a_kill(home):
    from mlflow.store.tracking.dbmodels.initial_models import Base

    half(home / "mlflow" / "mlflow.db", Base.metadata)
    half(home / "mlflow" / ".mlflow.db-killed" / "mlflow.db", Base.metadata)
    settings, barrier = settings_for(home), threading.Barrier(4)
    assert existing_client(settings) is None

    def use(function):
        barrier.wait(60)
        client = function(settings)
        return None if client is None else client.get_experiment_by_name(settings.experiment)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(use, (connect, connect, existing_client, existing_client)))
    assert [experiment.experiment_id for experiment in found[:2]] == ["1", "1"]
    assert use_again(settings) == ["Default", settings.experiment]
    assert [path.name for path in (home / "mlflow").glob(".*")] == [".lock"]


def use_again(settings) -> list[str]:
    return sorted(experiment.name for experiment in existing_client(settings).search_experiments())


def test_an_unrelated_database_is_not_mistaken_for_an_unfinished_one(home, tmp_path):
    mine = tmp_path / "mine.db"
    rows(mine, "CREATE TABLE mine (text TEXT)")
    rows(mine, "INSERT INTO mine VALUES ('kept')")
    tracking._make_database(f"sqlite:///{mine}")
    assert rows(mine, "SELECT text FROM mine") == [("kept",)]


def half(database: Path, tables) -> None:
    """Create an unfinished database: empty tables or, if there are no tables, an empty file."""
    database.parent.mkdir(parents=True, exist_ok=True)
    database.touch()
    if tables is not None:
        engine = create_engine(f"sqlite:///{database}")
        tables.create_all(engine)
        engine.dispose()


def test_a_home_broken_by_two_commands_is_repaired_without_losing_anything(made_home):
    whole = revisions(made_home)
    for name in DATABASES:
        rows(made_home / "dagster" / name, f"INSERT INTO alembic_version VALUES ('{OLD}')")
    with pytest.raises(CommandError, match="more than one head"):
        dg.DagsterInstance.from_config(str(made_home / "dagster"))
    assert_nothing_is_lost(made_home)
    assert revisions(made_home) == whole


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("several", "index.db has several schema revisions (.*abc.*), but only one can be right: restore .*, or move"),
        ("garbage", "index.db can't be read (file is not a database): restore .*, or move it away"),
    ],
)
@pytest.mark.parametrize("use", [open_instance, existing_instance])
def test_a_damaged_database_is_kept_and_named_with_a_remedy(made_home, use, damage, message):
    index = made_home / "dagster" / DATABASES[1]
    if damage == "several":
        rows(index, "INSERT INTO alembic_version VALUES ('abc')")
    else:
        index.write_bytes(b"garbage" * 1000)
    before = index.read_bytes()
    with pytest.raises(BatchAssetsError, match=message.replace("(", r"\(").replace(")", r"\)")) as raised:
        use(settings_for(made_home))
    assert "dagster.yaml" not in str(raised.value)
    assert index.read_bytes() == before


def test_opening_storage_succeeds_while_another_machine_creates_its_tables(made_home, monkeypatch):
    open_it = dg.DagsterInstance.from_config

    def open_second(folder: str) -> dg.DagsterInstance:
        monkeypatch.setattr(dg.DagsterInstance, "from_config", open_it)
        raise ProgrammingError("CREATE TABLE", {}, Exception('relation "instance_info" already exists'))

    monkeypatch.setattr(dg.DagsterInstance, "from_config", open_second)
    assert_nothing_is_lost(made_home)


def test_registering_batches_succeeds_while_another_process_registers_them(monkeypatch):
    with dg.DagsterInstance.ephemeral() as instance:
        add = instance.add_dynamic_partitions

        def add_second(name: str, keys: list[str]) -> None:
            monkeypatch.setattr(instance, "add_dynamic_partitions", add)
            add(name, keys[:1])
            raise IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed"))

        monkeypatch.setattr(instance, "add_dynamic_partitions", add_second)
        register_batches(instance, DEFAULT_PIPELINE, ["a", "b", "a"])
        assert known_batches(instance, DEFAULT_PIPELINE) == ["a", "b"]


def test_commands_that_land_files_as_the_same_batch_take_turns(tmp_path, home, monkeypatch):
    held = []

    def seen(function):
        def call(*arguments):
            held.append((function.__name__, is_held(home / "locks" / "landing-a.lock")))
            return function(*arguments)

        return call

    monkeypatch.setattr(LandingFolder, "_write_down", seen(LandingFolder._write_down))
    monkeypatch.setattr(land, "materialize", seen(land.materialize))
    monkeypatch.setenv("BATCH_ASSETS_HOME", str(home))
    file = write_json_lines(tmp_path / "a.jsonl", [{"id": "1", "document": "a text"}])
    assert CliRunner().invoke(main, ["land", str(file)]).exit_code == 0
    folder = landing_folder(settings_for(home))
    write_json_lines(home / "landing" / "a.jsonl", [{"id": "2", "document": "another text"}])
    assert folder.take(Group("a", ("a.jsonl",), 0))
    assert held == [("_write_down", True), ("materialize", True), ("_write_down", True)]
