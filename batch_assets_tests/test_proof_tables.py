"""Tables of other writers at full size: filled beside a running daemon, long, wide, and with large batches."""

import sys
import time

import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake
from pyspark import cloudpickle

from batch_assets.engines.contract import Completion, ScoringModel
from batch_assets.graph.partitions import ACTIVE_STATUSES
from batch_assets.lake.lake import Lake
from batch_assets.pipelines.pipeline import settings_of
from batch_assets.scoring.completions import CompletionStore
from batch_assets.scoring.scorer import score_batch
from batch_assets.settings import load_settings
from batch_assets.sources.batch_keys import key_of
from batch_assets.sources.documents import newest_documents, open_documents
from batch_assets.staleness import input_metadata, stale_batches
from batch_assets.tasks.output_tables import tables_of
from batch_assets_tests.conftest import SMALL_T5, write_json_lines
from batch_assets_tests.servers import ChatServer, completion
from batch_assets_tests.table_history import TableHistory
from batch_assets_tests.test_proof_daemon import Deployment, wait_until

pytestmark = pytest.mark.proof

STEPS = 25
ROWS_PER_COMMIT = 50_000


@pytest.mark.parametrize("seed", [11, 12])
def test_a_random_history_beside_a_running_daemon_ends_with_the_answers_of_its_rows(tmp_path, seed):
    with ChatServer(lambda body, n: completion("unused")) as server:
        folder = tmp_path / "pipelines"
        folder.mkdir()
        held_out = [{"text": f"text {n}", "title": f"text {n}"} for n in range(3)]
        write_json_lines(tmp_path / "held_out.jsonl", held_out)
        history = TableHistory(str(tmp_path / "tickets"), seed, None)
        attributes = {
            "name": "titles",
            "source": {"url": history.uri, "batch_by": "day"},
            "columns": {"id": "ticket", "text": "text", "reference": "title"},
            "task": {"kind": "generation", "prompt": "Title of {document}"},
            "model": {"checkpoint": str(SMALL_T5), "max_length": 4, "engine": "transformers"},
            "evaluation": {"dataset": "held_out.jsonl", "rows": 3},
        }
        content = {"type": "batch_assets.InferencePipeline", "attributes": attributes}
        (folder / "titles.yaml").write_text(yaml.safe_dump(content))
        deployment = Deployment(tmp_path / "home", server, PIPELINES=str(folder), SENSOR_SECONDS="5")
        deployment.command("run", "titles")
        deployment.start()
        try:
            for _ in range(STEPS):
                history.step()
                time.sleep(history.random.uniform(0, 4))  # writers pause; nothing depends on how long

            def answers() -> set[tuple[object, ...]]:
                rows = pl.read_delta(str(tmp_path / "home" / "lake" / "main" / "default" / "titles_predictions"))
                return {(row["id"], row["document"], row["batch"]) for row in rows.to_dicts()}

            def is_done() -> bool:
                expected = {(ticket, text, key_of(day)) for ticket, text, day in history.rows()}
                return answers() == expected and not [run for run in deployment.runs() if run.status in ACTIVE_STATUSES]

            wait_until(is_done, 900, f"seed {seed}: {history.steps}")
        finally:
            deployment.stop()


def documents_of(folder, table: pa.Table, **source: object):
    """The lake, the tables and the documents of a pipeline that reads a table in place."""
    uri = str(folder / "source")
    for start in range(0, table.num_rows, ROWS_PER_COMMIT):
        write_deltalake(uri, table.slice(start, ROWS_PER_COMMIT), mode="append")
    attributes = {
        "name": "large",
        "source": {"url": uri, **source},
        "columns": {"text": "text"},
        "task": {"kind": "generation", "prompt": "{document}"},
    }
    settings = settings_of(attributes, load_settings(), folder)
    lake, tables = Lake.of(settings), tables_of(settings)
    return settings, lake, tables, open_documents(lake, settings, tables)


@pytest.mark.parametrize("is_sorted", [True, False], ids=["sorted", "scattered"])
def test_a_million_rows_in_a_thousand_batches_are_found_and_a_second_look_reads_the_end_of_the_log(
    tmp_path, monkeypatch, is_sorted
):
    monkeypatch.setenv("BATCH_ASSETS_HOME", str(tmp_path / "home"))
    numbers = np.arange(1_000_000)
    keys = numbers // 1000 if is_sorted else np.random.default_rng(0).permutation(numbers % 1000)
    table = pa.table({"id": numbers, "text": numbers.astype(str), "part": keys})
    settings, lake, tables, documents = documents_of(tmp_path, table, batch_by="part")
    assert [documents.rows(batch) for batch in documents.batches()] == [1000] * 1000
    stale = stale_batches(documents, lake.open(tables.scored), busy=set())
    assert len(stale) == 1000
    monkeypatch.setattr(DeltaTable, "__init__", None)
    assert newest_documents(lake, settings, tables, documents) is documents


def test_only_mapped_columns_of_a_table_with_two_thousand_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("BATCH_ASSETS_HOME", str(tmp_path / "home"))
    columns = {"id": range(100), "text": ["a"] * 100, "part": [1, 2] * 50}
    table = pa.table({**columns, **{f"column_{number}": range(100) for number in range(2000)}})
    documents = documents_of(tmp_path, table, batch_by="part")[-1]
    assert documents.delta.scan({"batch": "1"}).schema.names == ["id", "text", "part"]
    assert sum(rows.num_rows for rows in documents.read("1")) == 50


class Echo:
    """An engine that costs nothing, so that the memory is that of moving documents."""

    def __init__(self, model, threads) -> None:
        pass

    def stream(self, documents, batch_tokens=None):
        for place, document in enumerate(documents):
            yield place, Completion(document[:20], finish_reason="stop", input_tokens=1, output_tokens=1)


def test_a_batch_of_two_hundred_thousand_rows_takes_no_more_memory_than_a_small_one(tmp_path, monkeypatch, spark):
    cloudpickle.register_pickle_by_value(sys.modules[Echo.__module__])
    model = ScoringModel("m", 1, "d", "/nowhere", {}, None, "transformers", "float32", 0, device_map="cpu")
    driver, workers = [], []
    for count in (10_000, 200_000):
        home = tmp_path / str(count)
        monkeypatch.setenv("BATCH_ASSETS_HOME", str(home / "home"))
        text = "one of many documents " * 45  # about a kilobyte
        table = pa.table({"id": range(count), "text": [f"{n} {text}" for n in range(count)], "part": ["a"] * count})
        _, lake, tables, documents = documents_of(home, table, batch_by="part")
        del table
        store = CompletionStore.of(lake, tables.scored, "a", model.fingerprint)
        output = lake.open(tables.scored)
        metadata = input_metadata(documents, "a")
        scored = score_batch(spark, documents, output, "a", model, store, metadata, lambda line: None, load=Echo)
        assert (scored.rows, scored.scored) == (count, count)
        driver.append(psutil.Process().memory_info().rss // 2**20)
        workers.append(scored.workers.mebibytes)
    print(f"driver {driver} MiB, workers {workers} MiB")
    assert workers[1] <= workers[0] + 128
    assert driver[1] <= driver[0] + 256
