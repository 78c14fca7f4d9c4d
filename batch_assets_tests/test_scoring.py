"""The Spark scorer, with real Spark, real Delta tables and workers that die."""

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from batch_assets.engines.catalog import load_engine
from batch_assets.engines.contract import Completion, ErrorClass, generate
from batch_assets.errors import BatchAssetsError
from batch_assets.graph.table_metadata import sample_rows
from batch_assets.lake.contracts import BATCH_INFERENCE, PROD_DATA
from batch_assets.lake.counts import Counts
from batch_assets.lake.staging import stage
from batch_assets.machine import cores
from batch_assets.models.registry import scoring_model
from batch_assets.scoring import scorer
from batch_assets.scoring.completions import CompletionStore, remove_abandoned
from batch_assets.scoring.scorer import score_batch

WHEN = {"landed_at", "scored_at"}


def land(lake, batch, documents):
    """Write documents to m4_1_prod_data."""
    snapshot = lake.open(PROD_DATA)
    rows = [
        {"id": f"{number:04}", "document": text, "summary": None, "source": "test", "landed_at": datetime.now(UTC)}
        for number, text in enumerate(documents)
    ]
    table = pa.Table.from_pylist(rows, schema=PROD_DATA.file_schema)
    snapshot.replace(batch, stage([table], snapshot.staging_area(batch)), {})


def score(spark, lake, batch, model, lines=None, **options):
    store = CompletionStore.of(lake, BATCH_INFERENCE, batch, model.fingerprint)
    report = (lines if lines is not None else []).append
    output = lake.open(BATCH_INFERENCE)
    return score_batch(spark, lake.open(PROD_DATA), output, batch, model, store, {}, report, **options)


def rows(lake, batch):
    read = [row for part in lake.open(BATCH_INFERENCE).read(batch) for row in part.to_pylist()]
    return sorted(({k: v for k, v in row.items() if k not in WHEN} for row in read), key=lambda row: row["id"])


def but_for_the_model(found):
    """Rows without the values that differ between a model and its copy."""
    return [{k: v for k, v in row.items() if k not in {"request_hash", "batch"}} for row in found]


def texts(documents, count):
    return [row["document"] for row in documents[:count]]


NO_TEXT = [None, "", " \t\n", "\u200b\u200d", "\ufeff", "\u2800"]


def test_equal_documents_are_scored_once_and_documents_without_text_are_not_scored(spark, lake, t5, documents):
    first, second = texts(documents, 2)
    land(lake, "a", [first, None, second, first, ".", first])
    scored = score(spark, lake, "a", t5)
    assert (scored.rows, scored.scored, scored.counts) == (6, 3, Counts(summaries=5, errors=0, no_text=1))
    found = rows(lake, "a")
    assert found[0]["generated_summary"] == found[3]["generated_summary"] == found[5]["generated_summary"]
    null = found[1]
    assert {null[name] for name in ("generated_summary", "request_hash", "finish_reason", "input_tokens")} == {None}
    assert null["error_message"] == "the document has no text"
    assert (null["model_name"], null["model_version"]) == (t5.name, t5.version)
    engine = load_engine(t5, 2)
    assert [found[0]["generated_summary"], found[2]["generated_summary"]] == [
        generation.text for generation in generate(engine, [first, second])
    ]
    assert not list((Path(lake.uri) / "_completions").rglob("*.parquet"))


def test_a_document_without_text_gets_an_error_without_reaching_an_engine_even_if_it_was_scored_before(
    spark, lake, t5, tmp_path
):
    model, given = score_model_of_its_own(t5), tmp_path / "given"
    given.mkdir()

    class Recording:
        """An engine that writes a file for each document it receives."""

        def __init__(self, model, threads):
            pass

        def stream(self, documents, batch_tokens=None):
            for place, document in enumerate(documents):
                (given / uuid.uuid4().hex).write_text(document)
                yield place, Completion(text=f"about {document}", finish_reason="stop")

    # Earlier releases scored empty documents: one summary is committed, and others are left over from a killed run.
    land(lake, "a", [*NO_TEXT, ".", "0"])
    now = datetime.now(UTC)
    old = [{"id": "0000", "landed_at": now}]
    for number, text, said in ((1, "", "invented"), (6, ".", "about .")):
        made = {"generated_summary": said, "request_hash": model.request_hash(text)}
        old.append({"id": f"{number:04}", "document": text, "landed_at": now, **made})
    output = lake.open(BATCH_INFERENCE)
    table = pa.Table.from_pylist(old, schema=BATCH_INFERENCE.file_schema)
    output.replace("a", stage([table], output.staging_area("a")), {})
    waiting = [
        Completion("invented", request_hash=model.request_hash(text), completed_at=now) for text in ("", "\ufeff")
    ]
    CompletionStore.of(lake, BATCH_INFERENCE, "a", model.fingerprint).write(waiting)

    scored = score(spark, lake, "a", model, load=Recording)
    assert scored.counts == Counts(summaries=2, errors=0, no_text=6)
    found = [(row["generated_summary"], row["error_message"]) for row in rows(lake, "a")]
    assert found == [(None, "the document has no text")] * 6 + [("about .", None), ("about 0", None)]
    land(lake, "b", NO_TEXT)
    scored = score(spark, lake, "b", model, load=Recording)
    assert (scored.rows, scored.scored, scored.workers) == (6, 0, None)
    assert [row["error_message"] for row in rows(lake, "b")] == ["the document has no text"] * 6
    assert [file.read_text() for file in given.iterdir()] == ["0"]


def test_rows_with_neither_a_summary_nor_an_error_are_not_committed(spark, lake, t5):
    class Silent:
        def __init__(self, model, threads):
            pass

        def stream(self, documents, batch_tokens=None):
            return ((place, Completion(text=None)) for place in range(len(documents)))

    land(lake, "a", ["x", None])
    with pytest.raises(BatchAssetsError, match="batch a: 1 rows have neither an answer nor an error"):
        score(spark, lake, "a", score_model_of_its_own(t5), load=Silent)
    assert rows(lake, "a") == []


def test_a_second_run_scores_nothing_and_a_run_after_a_change_scores_only_new_documents(spark, lake, t5, documents):
    land(lake, "a", texts(documents, 6))
    assert score(spark, lake, "a", t5).scored == 6
    before = rows(lake, "a")
    again = score(spark, lake, "a", t5)
    assert (again.scored, again.workers) == (0, None)
    assert rows(lake, "a") == before
    land(lake, "a", [*texts(documents, 6), "A new document about whales."])
    assert score(spark, lake, "a", t5).scored == 1
    assert rows(lake, "a")[:6] == before


def test_summaries_do_not_depend_on_the_number_of_tasks_or_the_order_of_documents(
    spark, lake, t5, documents, monkeypatch
):
    some = texts(documents, 12)
    land(lake, "a", some)
    score(spark, lake, "a", t5)
    summaries = {row["document"]: row["generated_summary"] for row in rows(lake, "a")}
    for number, tasks in enumerate((1, 5)):
        monkeypatch.setattr(scorer, "_resources", lambda *_, tasks=tasks: (tasks, 1, 0))
        land(lake, f"b{number}", some[::-1])
        assert score(spark, lake, f"b{number}", t5).scored == 12
        assert {row["document"]: row["generated_summary"] for row in rows(lake, f"b{number}")} == summaries


def test_each_worker_loads_the_model_once_for_all_batches(spark, lake, t5, documents):
    # The new digest makes it a model that no worker has loaded yet.
    fresh = score_model_of_its_own(t5)
    loads, processes = 0, 0
    for start in range(3):
        land(lake, f"a{start}", texts(documents, 30)[start * 10 : start * 10 + 10])
        scored = score(spark, lake, f"a{start}", fresh)
        loads += scored.workers.loads
        processes = max(processes, scored.workers.processes)
        assert scored.workers.mebibytes > 50
    assert processes == 2
    assert loads == 2


def score_model_of_its_own(model):
    return replace(model, digest=uuid.uuid4().hex)


class Deadly:
    """An engine whose process dies on some documents."""

    def __init__(self, model, threads):
        self._engine = load_engine(model, threads)

    def stream(self, documents, batch_tokens=None):
        if any(text.startswith("deadly") for text in documents):
            os.kill(os.getpid(), signal.SIGKILL)
        return self._engine.stream(documents, batch_tokens)


@pytest.mark.parametrize("deadly", [1, 5])
def test_rows_that_kill_their_worker_are_isolated_and_the_rest_completes(spark, lake, t5, documents, deadly):
    some = texts(documents, 8)
    land(lake, "a", [*some, *[f"deadly {number}" for number in range(deadly)]])
    scored = score(spark, lake, "a", score_model_of_its_own(t5), load=by_value(Deadly))
    assert (scored.rows, scored.counts.errors) == (8 + deadly, deadly)
    found = rows(lake, "a")
    expected = generate(load_engine(t5, 2), some)
    assert [row["generated_summary"] for row in found[:8]] == [generation.text for generation in expected]
    for row in found[8:]:
        assert (row["generated_summary"], row["error_message"]) == (None, "the worker process died over this document")
        assert row["request_hash"]


class Broken(Deadly):
    """An engine whose process dies over every document while the file ``broken`` is in the model's folder."""

    def __init__(self, model, threads):
        super().__init__(model, threads)
        self._flag = Path(model.path) / "broken"

    def stream(self, documents, batch_tokens=None):
        if self._flag.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return self._engine.stream(documents, batch_tokens)


def test_documents_are_not_blamed_for_a_machine_that_kills_every_worker(
    spark, lake, t5, documents, tmp_path, monkeypatch
):
    monkeypatch.setattr(scorer, "SYSTEMIC_ERRORS", 1)
    land(lake, "a", texts(documents, 6))
    model = replace(score_model_of_its_own(t5), path=str(shutil.copytree(t5.path, tmp_path / "model")))
    (tmp_path / "model" / "broken").touch()
    with pytest.raises(BatchAssetsError, match=r"documents killed their workers, so the cause is probably the model"):
        score(spark, lake, "a", model, load=by_value(Broken))
    assert rows(lake, "a") == []
    (tmp_path / "model" / "broken").unlink()
    scored = score(spark, lake, "a", model, load=by_value(Broken))
    assert (scored.scored, scored.counts) == (6, Counts(summaries=6))


def by_value(thing):
    """Pickle a test's class by value, because Spark's workers can't import the tests."""
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[thing.__module__])
    return thing


def test_an_engine_that_fails_to_load_fails_the_run_and_commits_nothing(spark, lake, t5, documents):
    def broken(model, threads):
        raise RuntimeError("no such weights")

    land(lake, "a", texts(documents, 3))
    with pytest.raises(Exception, match="no such weights"):
        score(spark, lake, "a", score_model_of_its_own(t5), load=broken)
    assert rows(lake, "a") == []


def test_a_batch_is_not_committed_if_every_request_fails(spark, lake, t5, documents):
    class Failing:
        def __init__(self, model, threads):
            pass

        def stream(self, documents, batch_tokens=None):
            failed = Completion.failed("out of order", ErrorClass.SERVICE)
            return ((place, failed) for place in range(len(documents)))

    land(lake, "a", texts(documents, 6))
    with pytest.raises(BatchAssetsError, match=r"all 6 requests of batch a failed.*out of order"):
        score(spark, lake, "a", score_model_of_its_own(t5), load=Failing)
    assert rows(lake, "a") == []


def test_invalid_utf8_is_summarized_with_replacement_characters(spark, lake, t5, documents):
    land(lake, "a", texts(documents, 2))
    snapshot = lake.open(PROD_DATA)
    raw = pa.array([b"Half an emoji: \xed\xa0\xbd. Whales live in the sea."], pa.binary()).view(pa.string())
    theirs = pa.table(
        {
            "id": ["x"],
            "document": raw,
            "summary": pa.array([None], pa.string()),
            "batch": ["a"],
            "source": ["theirs"],
            "landed_at": pa.array([datetime.now(UTC)], pa.timestamp("us", tz="UTC")),
        }
    )
    write_deltalake(snapshot.uri, theirs, mode="append")
    scored = score(spark, lake, "a", t5)
    assert (scored.rows, scored.scored) == (3, 3)
    assert all(row["generated_summary"] for row in rows(lake, "a"))
    # A run describes the batch by its first rows.
    shown = {row["document"] for row in sample_rows(lake.open(PROD_DATA), "a", ["document"], 9)}
    assert len(shown) == 3
    assert any(text.startswith("Half an emoji: \ufffd") for text in shown)


def die_over(store, job, request_hash):
    with store.attempting(job, 7, request_hash):
        os.kill(os.getpid(), signal.SIGKILL)


def test_finished_completions_are_reused_and_attempts_of_an_earlier_job_are_ignored(spark, lake, t5, documents):
    some = texts(documents, 4)
    land(lake, "a", some)
    store = CompletionStore.of(lake, BATCH_INFERENCE, "a", t5.fingerprint)
    done = t5.request_hash(some[0])
    now = datetime.now(UTC)
    store.write(
        [
            Completion(
                "made before the kill",
                finish_reason="stop",
                model=t5.name,
                model_version=t5.version,
                request_hash=done,
                completed_at=now,
            )
        ]
    )
    # A killed run was scoring this row, one row at a time.
    old = multiprocessing.get_context("spawn").Process(
        target=die_over, args=(store, "oldjob", t5.request_hash(some[1]))
    )
    old.start()
    old.join()
    assert store.attempts("oldjob") == {t5.request_hash(some[1]): 1}
    scored = score(spark, lake, "a", t5)
    assert (scored.scored, scored.counts.errors) == (3, 0)
    assert rows(lake, "a")[0]["generated_summary"] == "made before the kill"
    assert store._all_paths(store._files()) == []


def test_a_run_killed_halfway_scores_only_the_rest_and_spark_needs_no_retries_to_find_a_deadly_row(
    spark, lake, t5, documents, tmp_path
):
    some = [f"{number}. {documents[number % 100]['document'][:200]}" for number in range(60)]
    land(lake, "a", some)
    score(spark, lake, "a", t5)
    undisturbed = rows(lake, "a")
    land(lake, "b", some)
    model = score_model_of_its_own(t5)

    arguments = tmp_path / "arguments"
    land(lake, "deadly", ["kill 0", *some[:3], "kill 1", *some[3:6]])
    # Workers flush every two seconds. With this master, Spark gives up when a task fails once.
    work = {"lake": lake, "models": {"deadly": t5, "b": model}, "seconds": 0.15, "deadline": 15}
    arguments.write_bytes(pickle.dumps({**work, "resource": {"master": "local[2]"}}))
    command = [sys.executable, "-m", "batch_assets_tests.scoring_process", str(arguments)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    killers = [row["document"] for row in rows(lake, "deadly") if row["error_message"]]
    assert (len(rows(lake, "deadly")), killers) == (8, ["kill 0", "kill 1"])
    assert rows(lake, "b") == []
    scored = score(spark, lake, "b", model).scored
    # Each worker finished 15 documents; only those since its last flush, at most 14, are scored again.
    assert 30 <= scored <= 30 + 2 * 14

    assert but_for_the_model(rows(lake, "b")) == but_for_the_model(undisturbed)


def test_an_attempt_is_cleared_unless_the_process_dies(lake):
    store = CompletionStore.of(lake, BATCH_INFERENCE, "a", "ab" * 32)
    with pytest.raises(RuntimeError), store.attempting("job", 7, "hash"):
        assert store.attempts("job") == {"hash": 1}
        raise RuntimeError
    assert store.attempts("job") == {}


@pytest.mark.proof
def test_the_stock_spark_udf_engine_writes_the_same_summaries(spark, lake, t5_version, documents):
    settings, client, version = t5_version
    stock = scoring_model(client, version, settings.model_copy(update={"engine": "mlflow"}))
    land(lake, "a", [*texts(documents, 4), None, "", "\ufeff", documents[0]["document"]])
    scored = score(spark, lake, "a", stock)
    assert (scored.rows, scored.scored, scored.counts) == (8, 4, Counts(summaries=5, errors=0, no_text=3))
    found = rows(lake, "a")
    assert {row["error_message"] for row in found[4:7]} == {"the document has no text"}
    reference = scoring_model(client, version, settings.model_copy(update={"engine": "transformers"}))
    expected = generate(load_engine(reference, 2), texts(documents, 4))
    assert [row["generated_summary"] for row in found[:4]] == [generation.text for generation in expected]
    assert {row["output_tokens"] for row in found} == {None}
    assert score(spark, lake, "a", stock).scored == 0


@pytest.mark.parametrize(
    ("device_map", "gpus", "expected"),
    [("auto", 0, (2, 0)), ("auto", 1, (1, 1)), ("auto", 8, (2, 8)), ("cuda:1", 8, (1, 0)), ("cpu", 8, (2, 0))],
)
def test_workers_share_the_available_cores_and_gpus(spark, t5, monkeypatch, device_map, gpus, expected):
    monkeypatch.setattr(scorer, "_gpus", lambda: gpus)
    slots, threads, shared = scorer._resources(spark, replace(t5, device_map=device_map))
    assert (slots, shared) == expected
    assert slots * threads <= cores()


def take(queue, done):
    from batch_assets.scoring.worker import take_gpus

    try:
        take_gpus(4, 2)
        queue.put(os.environ["CUDA_VISIBLE_DEVICES"])
    except RuntimeError as error:
        queue.put(str(error))
    done.wait()


def test_each_worker_takes_visible_gpus_that_no_other_worker_uses(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,GPU-aa,GPU-bb")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    spawn = multiprocessing.get_context("spawn")
    queue, done = spawn.Queue(), spawn.Event()
    workers = [spawn.Process(target=take, args=(queue, done)) for _ in range(3)]
    for worker in workers:
        worker.start()
    said = sorted(queue.get() for _ in workers)
    done.set()
    for worker in workers:
        worker.join()
    assert said[:2] == ["2,3", "GPU-aa,GPU-bb"]
    assert said[2].startswith("all GPUs on this machine")


def test_rows_that_always_fail_do_not_prevent_others_from_being_committed(spark, lake, t5, documents):
    @by_value
    class Picky:
        def __init__(self, model, threads):
            pass

        def stream(self, documents, batch_tokens=None):
            for place, document in enumerate(documents):
                bad = document.startswith("bad")
                yield place, Completion.failed("bad input", ErrorClass.SERVICE) if bad else Completion("fine")

    model = score_model_of_its_own(t5)
    bad = [f"bad {number}" for number in range(6)]
    land(lake, "a", [*texts(documents, 4), *bad])
    assert score(spark, lake, "a", model, load=Picky).counts.errors == 6
    land(lake, "a", [*texts(documents, 3), *bad])
    again = score(spark, lake, "a", model, load=Picky)
    assert (again.rows, again.scored, again.counts.errors) == (9, 6, 6)


def test_progress_reports_the_remaining_documents_and_the_workers(spark, lake, t5, documents):
    land(lake, "a", [*texts(documents, 9), None])
    lines: list[str] = []
    score(spark, lake, "a", score_model_of_its_own(t5), lines)
    assert lines[0] == "batch a: 9 documents to score with ctranslate2 in float32"
    assert lines[-1].startswith("batch a: 2 workers, ")
    assert "MiB at most, model loaded in " in lines[-1]


def test_the_progress_bar_shows_how_much_the_workers_have_written():
    import threading

    from batch_assets.scoring.progress import is_progress, progress

    counts, lines, told = iter([40, 40, 60, 80, 100]), [], threading.Event()

    def report(line):
        lines.append(line)
        if len(lines) == 3:
            told.set()

    with progress("batch a", 120, lambda: next(counts, 100), report, seconds=0.01):
        assert told.wait(10)
    assert all(is_progress(line) for line in lines)
    assert lines[0].startswith("batch a: [####....................] 20 of 120 rows, ")
    assert lines[2].startswith("batch a: [############............] 60 of 120 rows, ")
    assert lines[2].endswith(" s left")
    assert not is_progress("batch a: 120 rows committed")


def test_abandoned_completions_are_removed_and_recent_ones_are_kept(lake, tmp_path):
    for digest in ("a" * 16, "b" * 16):
        CompletionStore.of(lake, BATCH_INFERENCE, "a", digest).write(
            [Completion("text", request_hash=digest, completed_at=datetime.now(UTC))]
        )
    old, young = (next(Path(lake.uri).rglob(f"{digest * 16}/*.parquet")) for digest in "ab")
    os.utime(old, (0, 0))
    assert remove_abandoned(lake, 1) == 1
    assert (old.exists(), young.exists()) == (False, True)
    assert remove_abandoned(lake, 1) == 0
