"""Failed rows: what caused the error decides whether, when and how often they are requested again."""

import json
import sys
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from pyspark import cloudpickle

from batch_assets.ai_functions.client import Client
from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.ai_functions.execution import answer_batch
from batch_assets.ai_functions.limits import Share
from batch_assets.ai_functions.requests import Request
from batch_assets.engines.contract import Completion, ErrorClass, ScoringModel
from batch_assets.graph.ai_query_inference import statement_of
from batch_assets.lake.contracts import AI_QUERY_INFERENCE, BATCH_INFERENCE, PROD_DATA
from batch_assets.lake.staging import stage
from batch_assets.scoring.completions import CompletionStore
from batch_assets.scoring.scorer import score_batch
from batch_assets.settings import Settings
from batch_assets.staleness import Need, batches_to_retry, input_metadata, need_of
from batch_assets_tests.servers import ChatServer, Reply, completion

TEXTS = [f"text {number}" for number in range(3)]


def land(lake, texts: list[str], batch: str = "a") -> None:
    snapshot = lake.open(PROD_DATA)
    rows = [{"id": str(n), "document": text, "landed_at": datetime.now(UTC)} for n, text in enumerate(texts)]
    table = pa.Table.from_pylist(rows, schema=PROD_DATA.file_schema)
    snapshot.replace(batch, stage([table], snapshot.staging_area(batch)), {})


def rows_of(lake, table) -> list[tuple[str | None, str | None, int | None]]:
    """The answer, the class of the error and the attempts of each row, by id."""
    found = [row for part in lake.open(table).read("a") for row in part.to_pylist()]
    columns = ("generated_summary", "error_class", "attempts")
    return [tuple(row[name] for name in columns) for row in sorted(found, key=lambda row: row["id"])]


class Pipeline:
    """One batch that an endpoint answers."""

    def __init__(self, spark, lake, server: ChatServer) -> None:
        self.spark, self.lake, self.server = spark, lake, server
        self.settings = Settings(endpoint="e", ai_query_limit=0, error_attempts=2)
        self.endpoint = Endpoint(name="e", base_url=server.url, model="m", deadline_seconds=1, timeout_seconds=1)

    def answer(self, **options) -> int:
        """Answer the batch, and return how many requests that took."""
        before = len(self.server.requests)
        documents = self.lake.open(PROD_DATA)
        answer_batch(
            self.spark, self.lake, documents, self.lake.open(AI_QUERY_INFERENCE), "a", self.endpoint,
            statement_of(self.settings, "a"), 0, input_metadata(documents, "a"), print, **options,
        )  # fmt: skip
        return len(self.server.requests) - before

    def needs_retry(self, **changes) -> bool:
        documents, output = self.lake.open(PROD_DATA), self.lake.open(AI_QUERY_INFERENCE)
        settings = self.settings.model_copy(update=changes)
        need = need_of(output, "a", input_metadata(documents, "a"), documents.version, settings)
        assert need is not Need.EVERYTHING
        return need is Need.FAILED_ROWS

    def rows(self) -> list[tuple[str | None, str | None, int | None]]:
        return rows_of(self.lake, AI_QUERY_INFERENCE)


@pytest.fixture
def pipeline(spark, lake):
    with ChatServer(lambda body, n: completion("fine")) as server:
        land(lake, TEXTS)
        yield Pipeline(spark, lake, server)


def test_rows_that_a_broken_endpoint_failed_are_requested_once_it_is_repaired_and_no_others(pipeline):
    pipeline.server.reply = lambda body, n: (404, {}, b"no such model")
    assert pipeline.answer() == 3
    assert pipeline.rows() == [(None, "service", 1)] * 3
    assert pipeline.needs_retry()
    pipeline.server.reply = lambda body, n: completion("fine") if "text 1" in str(body) else (404, {}, b"")
    pipeline.answer()
    pipeline.server.reply = lambda body, n: completion("repaired")
    # Both attempts are used up, so only rescore --errors requests the rows again.
    assert pipeline.rows() == [(None, "service", 2), ("fine", None, None), (None, "service", 2)]
    assert not pipeline.needs_retry()
    assert pipeline.needs_retry(error_attempts=3)
    assert pipeline.needs_retry(retry_errors=True)
    assert pipeline.answer() == 2
    assert pipeline.rows() == [("repaired", None, None), ("fine", None, None), ("repaired", None, None)]
    assert not pipeline.needs_retry(retry_errors=True)


def test_an_error_that_the_same_request_would_get_again_is_only_requested_with_all_errors(pipeline):
    too_long = json.dumps({"error": {"code": "context_length_exceeded"}}).encode()
    pipeline.server.reply = lambda body, n: (400, {}, too_long) if "text 1" in str(body) else completion("fine")
    assert pipeline.answer() == 3
    assert pipeline.rows() == [("fine", None, None), (None, "document", None), ("fine", None, None)]
    assert not pipeline.needs_retry()
    assert pipeline.answer() == 0
    assert pipeline.needs_retry(retry_errors=True)
    assert pipeline.answer(retry_errors=True) == 1
    assert pipeline.rows()[1] == (None, "document", None)


def test_an_answer_that_cannot_be_used_is_an_error_of_the_model(pipeline):
    def only_fine(text: str) -> str:
        if text != "fine":
            raise ValueError("not a label")
        return text

    pipeline.server.reply = lambda body, n: completion("other" if "text 2" in str(body) else "fine")
    assert pipeline.answer(read=only_fine) == 3
    assert pipeline.rows()[2] == (None, "model", None)
    assert not pipeline.needs_retry()
    assert pipeline.answer(read=only_fine) == 0


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ((404, {}, b"no such model"), ("service", 1)),
        ((400, {}, b"bad parameter"), ("service", 1)),
        ((413, {}, b"too large"), ("document", None)),
        ((400, {}, b'{"error": {"type": "exceed_context_size_error"}}'), ("document", None)),
        ((400, {}, b'{"message": "This model\'s maximum context length is 4096 tokens"}'), ("document", None)),
        (completion("", "content_filter"), ("document", None)),
        ((200, {}, b'{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}'), ("model", None)),
    ],
)
def test_the_class_of_an_error_comes_from_the_response(reply: Reply, expected):
    with ChatServer(lambda body, n: reply) as server:
        endpoint = Endpoint(name="e", base_url=server.url, model="m", deadline_seconds=1)
        client = Client(endpoint, Share.of(endpoint, 1, 1))
        try:
            ((_, answer),) = [pair for some in client.ask([Request("a text")]) for pair in some]
        finally:
            client.close()
    assert answer.text is None
    assert (answer.error_class, answer.attempts) == expected


class Picky:
    """An engine that fails for the documents that say so, unless the file ``repaired`` exists."""

    def __init__(self, model: ScoringModel, threads: int) -> None:
        from pathlib import Path

        self.is_repaired = Path(model.path).exists()

    def stream(self, documents, batch_tokens=None):
        for place, document in enumerate(documents):
            failing = next((one for one in ErrorClass if document.startswith(one)), None)
            if failing is None or self.is_repaired:
                yield place, Completion(f"about {document}", finish_reason="stop")
            else:
                yield place, Completion.failed("no", failing)


def test_an_engine_requests_service_errors_again_and_counts_their_attempts_once(spark, lake, tmp_path):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    flag = tmp_path / "repaired"
    # The fingerprint does not depend on the path, so requests stay the same.
    model = ScoringModel("m", 1, "d", str(flag), {}, None, "picky", "none", 0)
    land(lake, ["fine", "document", "model", "service", "service", None])

    def score(**options):
        store = CompletionStore.of(lake, BATCH_INFERENCE, "a", model.fingerprint)
        documents, output = lake.open(PROD_DATA), lake.open(BATCH_INFERENCE)
        return score_batch(spark, documents, output, "a", model, store, {}, print, load=Picky, **options).scored

    assert score() == 4
    failed = [("about fine", None, None), (None, "document", None), (None, "model", None)]
    assert rows_of(lake, BATCH_INFERENCE) == [*failed, *[(None, "service", 1)] * 2, (None, None, None)]
    commit = lake.open(BATCH_INFERENCE).last_commit("a")
    assert sorted(commit.metadata["failures"], key=str) == [
        ["document", None, 1],
        ["model", None, 1],
        ["service", 1, 2],
    ]
    assert score() == 1
    assert rows_of(lake, BATCH_INFERENCE)[3:5] == [(None, "service", 2)] * 2
    flag.touch()
    # A worker keeps its engine, so a model elsewhere makes it load a new one.
    model = ScoringModel("m", 1, "d", str(tmp_path), {}, None, "picky", "none", 0)
    assert score() == 1
    assert score(retry_errors=True) == 2
    assert [answer for answer, _, _ in rows_of(lake, BATCH_INFERENCE)][:3] == [
        "about fine", "about document", "about model",
    ]  # fmt: skip
    assert "failures" not in lake.open(BATCH_INFERENCE).last_commit("a").metadata


def test_a_retry_is_due_after_a_delay_that_doubles_with_every_attempt_and_with_every_run_that_failed(lake):
    for batch in "ab":
        land(lake, TEXTS, batch)
    documents, output = lake.open(PROD_DATA), lake.open(AI_QUERY_INFERENCE)
    for batch, failures in {"a": [("service", 1), ("document", None)], "b": [("service", 5)]}.items():
        row = {"id": "0", "endpoint": "e", "error_message": "no", "request_hash": "x"}
        rows = [{**row, "error_class": caused, "attempts": attempts} for caused, attempts in failures]
        table = pa.Table.from_pylist(rows, schema=AI_QUERY_INFERENCE.file_schema)
        output.replace(batch, stage([table], output.staging_area(batch)), input_metadata(documents, batch))
        output = lake.open(AI_QUERY_INFERENCE)
    committed = output.last_commit("a").seconds

    def times(minutes: float, attempts: int = 5) -> dict[str, int]:
        return batches_to_retry(documents, [output], set(), attempts, committed + minutes * 60)

    assert [times(minutes)["a"] for minutes in (0, 9, 10, 19, 20, 39, 40)] == [0, 0, 1, 1, 2, 2, 3]
    assert "b" not in times(10_000)
    assert times(3 * 24 * 60, attempts=6)["b"] > 0
    assert times(10, attempts=1) == {}
    assert batches_to_retry(documents, [output], {"a"}, 5, committed + 600) == {}


def test_errors_of_an_earlier_release_are_only_requested_with_all_errors(pipeline):
    output = pipeline.lake.open(AI_QUERY_INFERENCE)
    asked = Request(statement_prompt(pipeline.settings) + TEXTS[0]).hash(pipeline.endpoint)
    rows = [{"id": "0", "endpoint": "e", "error_message": "gave no answer", "request_hash": asked}]
    table = pa.Table.from_pylist(rows, schema=AI_QUERY_INFERENCE.file_schema)
    metadata = input_metadata(pipeline.lake.open(PROD_DATA), "a")
    output.replace("a", stage([table], output.staging_area("a")), metadata)
    assert not pipeline.needs_retry()
    assert pipeline.needs_retry(retry_errors=True)
    assert pipeline.answer() == 3


def statement_prompt(settings: Settings) -> str:
    return statement_of(settings, "a").split("CONCAT('")[1].split("'")[0]
