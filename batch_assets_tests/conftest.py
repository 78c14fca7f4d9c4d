"""Shared fixtures: a Spark session, two small trained models, a converted SmolLM2 and a set of documents."""

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import sqlalchemy
from absl.logging import get_absl_handler
from aclsum import ACLSum
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from sqlalchemy.pool import NullPool

from batch_assets.lake.lake import Lake
from batch_assets.locks import locked
from batch_assets.models import tracking
from batch_assets.settings import PREFIX, Settings
from batch_assets_tests.servers import s3_server

SMALL_T5, SMALL_LLAMA = (Path(__file__).with_name(name) for name in ("small-t5", "small-llama"))

# Dagster closes all logging handlers when a run starts. absl's (rouge_score brings it) then closes its stream, unless
# that is the standard error of the moment: in a test that replaces standard error, it would close pytest's own.
get_absl_handler().python_handler.stream = sys.__stderr__
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads that wait for each other otherwise spin, which takes the cores from the tests beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def _without_fsync(connection, _record):
    """Tests kill processes but never the machine, and Dagster commits each event of a run."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(scope="session", autouse=True)
def _dagster_engines_made_once():
    """Dagster creates an SQLAlchemy engine for each event and query, which takes half of their time."""

    @lru_cache(maxsize=64)
    def create_once(url: str) -> sqlalchemy.Engine:
        return sqlalchemy.create_engine(url, poolclass=NullPool, connect_args={"timeout": 60})

    with pytest.MonkeyPatch.context() as patch:
        for module in (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage):
            patch.setattr(module, "create_engine", lambda url, **options: create_once(url))
        yield


def pytest_collection_modifyitems(items):
    """Start with the files that take longest, so that both processes of make test end at about the same time."""
    items.sort(key=lambda item: item.path.stem not in {"test_graph", "test_scoring"})


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch):
    for name in list(os.environ):
        if name.startswith(PREFIX) or name in {"MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "DAGSTER_HOME"}:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _mlflow_tables_made_once(tmp_path_factory):
    """Homes in this process get a copy of tables that MLflow created once; creating them takes three seconds."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "mlflow"
    made, make = shared / "mlflow.db", tracking._make_database

    def copy_or_make(uri: str) -> None:
        file = tracking._sqlite_file(uri)
        if file is None or file.exists():
            make(uri)
            return
        with locked(shared / ".lock"):
            if not made.exists():
                make(f"sqlite:///{made}")
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "_make_database", copy_or_make)
        yield


@pytest.fixture(scope="session")
def spark(tmp_path_factory):
    """One session for all tests; a run's resource uses it and leaves it running."""
    from batch_assets.resources.java import check_java
    from batch_assets.resources.spark import SparkResource

    check_java()
    resource = SparkResource(master="local[2,4]")
    yield resource.session
    resource.session.stop()


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory) -> Path:
    """A copy of the small trained encoder-decoder (small_t5.py shows how it was trained)."""
    return Path(shutil.copytree(SMALL_T5, tmp_path_factory.mktemp("models") / SMALL_T5.name))


@pytest.fixture(scope="session")
def smollm2_checkpoints(tmp_path_factory) -> Path:
    """A folder of checkpoints that contains the embedded one, for homes to link to."""
    from batch_assets.models import smollm2

    folder = tmp_path_factory.mktemp("checkpoints")
    smollm2.prepare(folder / smollm2.NAME)
    return folder


def log(settings: Settings, example: str = "Some text to summarize."):
    """Log the model named in the settings; returns an MLflow client and the logged model."""
    from batch_assets.models.checkpoint_sources import checkpoint_source
    from batch_assets.models.logged import log_checkpoint
    from batch_assets.models.tracking import connect
    from batch_assets.sources.aclsum import ACLSumDataset

    client = connect(settings)
    dataset = ACLSumDataset("test", 25)
    return client, log_checkpoint(
        client, settings, checkpoint_source(settings).load(), dataset, example, lambda line: None
    )


def registered(settings: Settings, held_out: list):
    """A champion evaluated on held-out documents: settings, client, version."""
    from batch_assets.engines.transformers_engine import TransformersEngine
    from batch_assets.models.evaluation import evaluate
    from batch_assets.models.registry import RegisteredModel, run_model
    from batch_assets.tasks.configured_task import task_of

    client, logged = log(settings, held_out[0].document)
    run = logged.run
    evaluate(
        client,
        run,
        task_of(settings),
        held_out,
        "val",
        "0" * 64,
        lambda: TransformersEngine(run_model(run, settings), 2),
        0,
        print,
    )
    model = RegisteredModel.of(client, settings)
    version, _ = model.register(run, {"task": "summarization"})
    model.promote(version)
    return settings, client, version


@pytest.fixture(scope="session")
def held_out() -> list:
    """Documents with summaries, for comparing engines."""
    from batch_assets.sources.aclsum import ACLSumDataset

    return ACLSumDataset("validation", 25).held_out(5)


@pytest.fixture(scope="session")
def logged_t5(tmp_path_factory, t5_folder, held_out):
    return registered(settings_for(tmp_path_factory.mktemp("t5") / "home", model=str(t5_folder)), held_out)


@pytest.fixture(scope="session")
def logged_llama(tmp_path_factory, held_out):
    folder = shutil.copytree(SMALL_LLAMA, tmp_path_factory.mktemp("models") / SMALL_LLAMA.name)
    home = tmp_path_factory.mktemp("llama") / "home"
    return registered(settings_for(home, model=str(folder), max_length=20), held_out)


@pytest.fixture
def t5_version(logged_t5):
    """A registered champion made from the small T5: settings, client, version."""
    from batch_assets.models.tracking import connect

    # MLflow has one store per process, and the last test may have used another one.
    connect(logged_t5[0])
    return logged_t5


@pytest.fixture
def t5(t5_version, held_out):
    """The small T5, ready for scoring."""
    from batch_assets.models.registry import prepare_engine, scoring_model

    settings, client, version = t5_version
    prepare_engine(client, version, settings, held_out, lambda line: None)
    return scoring_model(client, version, settings)


@pytest.fixture
def llama_version(logged_llama):
    """A registered champion made from the small decoder-only model: settings, client, version."""
    from batch_assets.models.tracking import connect

    connect(logged_llama[0])
    return logged_llama


@pytest.fixture(scope="session")
def documents() -> list[dict[str, str]]:
    """Real documents with XSum's columns."""
    return [
        {
            "id": paper.id,
            "document": " ".join(paper.get_all_sentences(["abstract"])),
            "summary": paper.summaries["outcome"],
        }
        for paper in ACLSum("test").documents
    ]


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def lake(tmp_path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def s3(monkeypatch):
    """A server with the buckets lake and artifacts; everything that the test starts can find it."""
    with s3_server("lake", "artifacts") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield variables


@pytest.fixture
def s3_workers(s3, spark):
    """Let Spark's workers find the server too: they get Spark's initial environment plus the server's variables."""
    before = dict(spark.sparkContext.environment)
    spark.sparkContext.environment.update(s3)
    yield
    spark.sparkContext.environment.clear()
    spark.sparkContext.environment.update(before)


def settings_for(home: Path, **values) -> Settings:
    """Settings as the environment would give them, but with few documents to evaluate, to save time."""
    # MLflow writes its store into the environment of the process, where the next settings would pick it up.
    stores = {"mlflow_tracking_uri": None, "mlflow_registry_uri": None}
    return Settings(**{"home": home, "evaluation_rows": 3, "spark_master": "local[2,4]", **stores, **values})


def write_json_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def environment(home: Path, **settings: str) -> dict[str, str]:
    """The environment of a command with these settings."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return {**inherited, f"{PREFIX}HOME": str(home), **{f"{PREFIX}{key}": value for key, value in settings.items()}}


BATCH_ASSETS = [sys.executable, "-m", "batch_assets"]


def batch_assets(*words: str, env: dict[str, str], timeout: int = 600) -> subprocess.CompletedProcess[str]:
    """Run a batch-assets command as a process."""
    return subprocess.run(
        [*BATCH_ASSETS, *words], env=env, capture_output=True, text=True, timeout=timeout, check=False
    )
