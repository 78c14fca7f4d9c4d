import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from batch_assets.ai_functions.client import AiFunctionError, ask
from batch_assets.ai_functions.embedded import EmbeddedServer
from batch_assets.ai_functions.endpoints import Endpoint, configured_endpoint, read_endpoints
from batch_assets.ai_functions.sql import ai_sql, rewrite
from batch_assets.errors import BatchAssetsError
from batch_assets.inference.completions import CompletionStore, FinishedWork
from batch_assets.lake.tables import AI_QUERY_INFERENCE
from batch_assets_tests.servers import ChatServer, completion


def endpoint(server: ChatServer, **fields) -> Endpoint:
    return Endpoint(**{"name": "e", "base_url": server.url, "model": "m", "deadline_seconds": 20, **fields})


def answers(server: ChatServer, requests: list[str], **fields) -> dict:
    found = {}
    try:
        ask(endpoint(server, **fields), requests, found.__setitem__)
    except* AiFunctionError as group:
        raise group.exceptions[0] from None
    return found


def test_every_request_is_asked_once_with_the_endpoints_parameters_and_key(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sesame")
    with ChatServer(lambda body, n: completion(body["messages"][0]["content"].upper())) as server:
        found = answers(server, ["a", "b", "c"], parameters={"max_tokens": 5}, api_key_env="SOME_KEY")
    assert {request: answer.text for request, answer in found.items()} == {"a": "A", "b": "B", "c": "C"}
    assert sorted(server.prompts) == ["a", "b", "c"]
    body, headers = server.requests[0]
    assert (body["model"], body["max_tokens"]) == ("m", 5)
    assert headers["Authorization"] == "Bearer sesame"
    assert (found["a"].prompt_tokens, found["a"].completion_tokens, found["a"].model) == (7, 3, "said-by-server")


@pytest.mark.parametrize(
    "failure",
    [
        (429, {"Retry-After": "0"}, b""),
        (429, {"Retry-After": format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)}, b""),
        (500, {}, b"oops"),
        (503, {}, b""),
        (200, {"Content-Type": "application/json"}, b'{"choices": [{"mess'),
        (200, {"Content-Type": "application/json"}, b'{"choices": []}'),
        (200, {"Content-Type": "text/html"}, b"<html>"),
    ],
    ids=["429", "429 until a date", "500", "503", "truncated", "no choices", "not JSON"],
)
def test_a_failure_that_may_pass_is_tried_again(failure):
    with ChatServer(lambda body, n: failure if n == 1 else completion("fine")) as server:
        assert answers(server, ["a"])["a"].text == "fine"
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_request_that_is_refused_gets_the_error_and_the_others_their_answers(status):
    def reply(body, n):
        return (status, {}, b"too long") if body["messages"][0]["content"] == "bad" else completion("fine")

    with ChatServer(reply) as server:
        found = answers(server, ["good", "bad"])
    assert found["good"].text == "fine"
    assert found["bad"].text is None
    assert f"[AI_FUNCTION_HTTP_REQUEST_ERROR] HTTP status {status}: too long" == found["bad"].error_message
    assert len(server.requests) == 2


def test_an_answer_that_the_content_filter_withheld_is_an_error_and_a_cut_one_is_not():
    with ChatServer(lambda body, n: completion("cut", body["messages"][0]["content"])) as server:
        found = answers(server, ["content_filter", "length"])
    assert "content filter" in found["content_filter"].error_message
    assert (found["length"].text, found["length"].finish_reason) == ("cut", "length")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_ends_everything_without_showing_the_key(monkeypatch, status):
    monkeypatch.setenv("SOME_KEY", "sesame")
    with ChatServer(lambda body, n: (status, {}, b"")) as server, pytest.raises(AiFunctionError) as caught:
        answers(server, [str(n) for n in range(50)], api_key_env="SOME_KEY", requests_in_flight=2)
    assert "SOME_KEY" in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert len(server.requests) <= 2


def test_an_endpoint_that_is_out_of_reach_is_an_error_not_an_answer():
    with ChatServer(lambda body, n: completion("")) as server:
        url = server.url
    gone = Endpoint(name="e", base_url=url, model="m", deadline_seconds=0.5)
    with pytest.raises(ExceptionGroup) as caught:
        ask(gone, ["a"], lambda request, answer: None)
    assert "AI_FUNCTION_HTTP_REQUEST_ERROR" in str(caught.value.exceptions[0])


def test_a_redirect_is_not_followed_with_the_key(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sesame")
    with ChatServer(lambda body, n: completion("stolen")) as elsewhere:
        moved = (307, {"Location": f"{elsewhere.url}/chat/completions"}, b"")
        with ChatServer(lambda body, n: moved) as server, pytest.raises(AiFunctionError, match="redirects"):
            answers(server, ["a"], api_key_env="SOME_KEY")
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[endpoints.e]\nmodel = 'm'", "base_url"),
        ("[endpoints.e]\nbase_url = 'http://u:p@h/v1'\nmodel = 'm'", "credentials"),
        ("[endpoints.e]\nbase_url = 'ftp://h'\nmodel = 'm'", "http or https"),
        ("[endpoints.e]\nbase_url = 'http://h'\nmodel = 'm'\nkey = 'k'", "key"),
        ("[endpoints.'a b']\nbase_url = 'http://h'\nmodel = 'm'", "can't name an endpoint"),
        ("endpoints = 3", "one table"),
        ("[endpoints.e]\nbase_url = 'http://h'\nmodel = 'm'\nparameters = {day = 2026-01-01}", "JSON"),
        ("[endpoints", "can't be read"),
    ],
)
def test_an_endpoints_file_that_cannot_be_used_says_why(tmp_path, content, message):
    path = tmp_path / "endpoints.toml"
    path.write_text(content)
    with pytest.raises(BatchAssetsError, match=message):
        read_endpoints(path)


def test_an_unknown_endpoint_names_the_known_ones(tmp_path):
    path = tmp_path / "endpoints.toml"
    path.write_text("[endpoints.mine]\nbase_url = 'http://127.0.0.1:1/v1'\nmodel = 'm'")
    assert configured_endpoint(path, "mine").model == "m"
    assert configured_endpoint(path, "smollm2") is None
    with pytest.raises(BatchAssetsError, match="mine, smollm2"):
        configured_endpoint(path, "other")


def test_only_calls_that_must_not_fail_are_rewritten():
    statement = "SELECT ai_query('e', CONCAT('a', x), failOnError => false) AS r FROM t WHERE b = 'ai_query' LIMIT 3"
    rewritten = rewrite(statement)
    assert "_ai_query_result_or_error('e', CONCAT('a', x))" in rewritten.replace("_AI_QUERY", "_ai_query").replace(
        "RESULT_OR_ERROR", "result_or_error"
    )
    assert "failOnError" not in rewritten
    assert "'ai_query'" in rewritten
    with pytest.raises(AiFunctionError, match="can't be parsed"):
        rewrite("SELECT FROM WHERE (")


def test_ai_query_in_sql_asks_once_a_row_and_not_at_all_for_null(spark):
    from batch_assets.ai_functions.functions import register_ai_functions

    with ChatServer(lambda body, n: completion(body["messages"][0]["content"].upper())) as server:
        register_ai_functions(spark, {"e": endpoint(server)})
        spark.createDataFrame([("a",), ("b",), (None,), ("a",)], "text string").createOrReplaceTempView("texts")
        rows = spark.sql(
            "SELECT text, answer FROM (SELECT text, ai_query('e', text) AS answer FROM texts) "
            "WHERE answer IS NULL OR answer <> 'C'"
        ).collect()
    assert sorted((row["text"] or "", row["answer"]) for row in rows) == [
        ("", None),
        ("a", "A"),
        ("a", "A"),
        ("b", "B"),
    ]
    assert set(server.prompts) == {"a", "b"}
    assert len(server.prompts) <= 3  # equal requests are asked once a task


def test_fail_on_error_decides_between_a_failed_statement_and_an_error_message(spark):
    from batch_assets.ai_functions.functions import register_ai_functions

    def reply(body, n):
        return (400, {}, b"no") if body["messages"][0]["content"] == "bad" else completion("fine")

    with ChatServer(reply) as server:
        register_ai_functions(spark, {"e": endpoint(server)})
        spark.createDataFrame([("good",), ("bad",), (None,)], "text string").createOrReplaceTempView("texts")
        rows = ai_sql(spark, "SELECT text, ai_query('e', text, failOnError => false) AS a FROM texts").collect()
        with pytest.raises(Exception, match="AI_FUNCTION_HTTP_REQUEST_ERROR"):
            spark.sql("SELECT ai_query('e', text) FROM texts").collect()
        with pytest.raises(Exception, match="ai_sql"):
            spark.sql("SELECT ai_query('e', text, failOnError => false) FROM texts").collect()
        with pytest.raises(Exception, match="no endpoint 'other'"):
            spark.sql("SELECT ai_query('other', text) FROM texts").collect()
    found = {row["text"]: row["a"] for row in rows}
    assert found[None] is None
    assert (found["good"]["result"], found["good"]["errorMessage"]) == ("fine", None)
    assert found["bad"]["result"] is None
    assert "HTTP status 400" in found["bad"]["errorMessage"]


def test_answers_of_an_interrupted_statement_are_not_asked_for_again(spark, lake):
    from batch_assets.ai_functions.functions import COLUMNS, register_ai_functions

    store = CompletionStore.of(lake, AI_QUERY_INFERENCE, "a", "ab" * 32)
    finished = FinishedWork.of(store, lake.open(AI_QUERY_INFERENCE), "a", COLUMNS)
    spark.createDataFrame([(f"t{n}",) for n in range(6)], "text string").coalesce(1).createOrReplaceTempView("texts")
    refuse = True

    def reply(body, n):
        return (401, {}, b"") if refuse and n > 3 else completion("fine")

    with ChatServer(reply) as server:
        register_ai_functions(spark, {"e": endpoint(server, requests_in_flight=1)}, finished)
        with pytest.raises(Exception, match="refuses access"):
            spark.sql("SELECT ai_query('e', text) FROM texts").collect()
        assert store.count() == 3
        refuse = False
        asked_before = len(server.requests)
        assert len(spark.sql("SELECT ai_query('e', text) AS a FROM texts").collect()) == 6
        assert len(server.requests) - asked_before == 3


def test_the_embedded_server_answers_the_same_in_any_order_and_is_gone_when_stopped():
    server = EmbeddedServer("smollm2")
    started = server.start()
    assert server.start() == started
    requests = [f"Say in one sentence what a {thing} is." for thing in ("whale", "rope", "song", "lamp")]
    first, again = {}, {}
    ask(started, requests, first.__setitem__)
    ask(started, list(reversed(requests)), again.__setitem__)
    assert all(answer.text and answer.completion_tokens > 0 for answer in first.values())
    assert {key: answer.text for key, answer in first.items()} == {key: answer.text for key, answer in again.items()}
    server.stop()
    with pytest.raises(httpx.TransportError):
        httpx.get(started.base_url, timeout=2)


def test_the_embedded_server_dies_with_a_process_that_is_killed():
    program = (
        "import time; from batch_assets.ai_functions.embedded import EmbeddedServer; "
        "print(EmbeddedServer('smollm2').start().base_url, flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    url = owner.stdout.readline().strip()
    assert httpx.get(f"{url}/models", timeout=5).is_success
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/models", timeout=2)
        except httpx.TransportError:
            return
        time.sleep(0.1)
    pytest.fail("the server outlived its owner")
