"""The ai_query client against misbehaving servers, judged by the requests they received."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from batch_assets.ai_functions import limits
from batch_assets.ai_functions.client import Client
from batch_assets.ai_functions.embedded import EmbeddedServer
from batch_assets.ai_functions.endpoints import Endpoint, configured_endpoint, read_endpoints
from batch_assets.ai_functions.limits import Share
from batch_assets.ai_functions.requests import AiFunctionError, Request
from batch_assets.engines.contract import Completion
from batch_assets.errors import BatchAssetsError
from batch_assets_tests.servers import DROPPED, HUNG, ChatServer, Reply, completion


def endpoint(server: ChatServer, **fields) -> Endpoint:
    return Endpoint(**{"name": "e", "base_url": server.url, "model": "m", "deadline_seconds": 20, **fields})


def ask(endpoint: Endpoint, requests: list[str | Request]) -> dict[str, Completion]:
    """The answer to each request, by its text."""
    client = Client(endpoint, Share.of(endpoint, 1, 1))
    asked = [request if isinstance(request, Request) else Request(request) for request in requests]
    try:
        return {request.content: answer for some in client.ask(asked) for request, answer in some}
    finally:
        client.close()


def answers(server: ChatServer, requests: list[str | Request], **fields) -> dict[str, Completion]:
    return ask(endpoint(server, **fields), requests)


def test_every_request_is_sent_once_with_the_endpoints_parameters_and_key(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sesame")
    with ChatServer(lambda body, n: completion(body["messages"][0]["content"].upper())) as server:
        found = answers(server, ["a", "b", "c"], parameters={"max_tokens": 5}, api_key_env="SOME_KEY")
    assert {request: answer.text for request, answer in found.items()} == {"a": "A", "b": "B", "c": "C"}
    assert sorted(server.prompts) == ["a", "b", "c"]
    body, headers = server.requests[0]
    assert (body["model"], body["max_tokens"]) == ("m", 5)
    assert headers["Authorization"] == "Bearer sesame"
    assert (found["a"].input_tokens, found["a"].output_tokens, found["a"].model) == (7, 3, "said-by-server")


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
def test_a_temporary_failure_is_retried(failure):
    with ChatServer(lambda body, n: failure if n == 1 else completion("fine")) as server:
        assert answers(server, ["a"])["a"].text == "fine"
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_refused_request_gets_an_error_and_the_others_get_answers(status):
    def reply(body, n):
        return (status, {}, b"too long") if body["messages"][0]["content"] == "bad" else completion("fine")

    with ChatServer(reply) as server:
        found = answers(server, ["good", "bad"])
    assert found["good"].text == "fine"
    assert found["bad"].text is None
    assert f"[AI_FUNCTION_HTTP_REQUEST_ERROR] HTTP status {status}\ntoo long" == found["bad"].error_message
    assert len(server.requests) == 2


def test_an_answer_withheld_by_the_content_filter_is_an_error_but_a_truncated_one_is_not():
    with ChatServer(lambda body, n: completion("cut", body["messages"][0]["content"])) as server:
        found = answers(server, ["content_filter", "length"])
    assert "content filter" in found["content_filter"].error_message
    assert (found["length"].text, found["length"].finish_reason) == ("cut", "length")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_all_requests_without_being_shown(monkeypatch, status):
    monkeypatch.setenv("SOME_KEY", "sesame")
    with ChatServer(lambda body, n: (status, {}, b"")) as server, pytest.raises(AiFunctionError) as caught:
        answers(server, [str(n) for n in range(50)], api_key_env="SOME_KEY", requests_in_flight=2)
    assert "SOME_KEY" in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert len(server.requests) <= 2


def test_an_unreachable_endpoint_gives_an_error_instead_of_an_answer():
    with ChatServer(lambda body, n: completion("")) as server:
        url = server.url
    gone = Endpoint(name="e", base_url=url, model="m", deadline_seconds=0.5)
    with pytest.raises(AiFunctionError, match="AI_FUNCTION_HTTP_REQUEST_ERROR] the endpoint e gave no answer"):
        ask(gone, ["a"])


def test_the_key_is_not_sent_to_a_redirect(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sesame")
    with ChatServer(lambda body, n: completion("stolen")) as elsewhere:
        moved = (307, {"Location": f"{elsewhere.url}/chat/completions"}, b"")
        with ChatServer(lambda body, n: moved) as server, pytest.raises(AiFunctionError, match="redirects"):
            answers(server, ["a"], api_key_env="SOME_KEY")
        assert elsewhere.requests == []


@pytest.mark.proof
def test_a_server_that_fails_30_percent_of_the_time_answers_all_500_requests_once():
    tries: Counter[str] = Counter()
    answered: Counter[str] = Counter()

    def reply(body: dict, number: int) -> Reply:
        prompt = body["messages"][0]["content"]
        tries[prompt] += 1
        dice = hashlib.sha256(f"{prompt} {tries[prompt]}".encode()).digest()
        soon = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
        failures = [
            (429, {"Retry-After": "1"}, b""),
            (429, {"Retry-After": soon}, b""),
            (500, {}, b"oops"),
            (503, {}, b""),
            DROPPED,
            HUNG,
            (200, {"Content-Type": "application/json"}, b'{"choices": [{"mess'),
            (200, {"Content-Type": "application/json"}, b'{"choices": []}'),
            (200, {"Content-Type": "text/html"}, b"<html>"),
        ]
        if dice[0] < 0.3 * 256:
            return failures[dice[1] % len(failures)]
        if dice[1] < 26:
            time.sleep(0.3)
        answered[prompt] += 1
        return completion(prompt.upper())

    requests = [f"request {number}" for number in range(500)]
    with ChatServer(reply) as server:
        found = answers(server, requests, requests_in_flight=64, timeout_seconds=2, deadline_seconds=120)
    assert {request: answer.text for request, answer in found.items()} == {text: text.upper() for text in requests}
    assert set(answered.values()) == {1}
    assert sum(tries.values()) > 600
    assert server.most_at_once <= 64


def test_a_row_that_a_healthy_server_never_answers_gets_an_error_and_the_others_get_answers():
    def reply(body: dict, number: int) -> Reply:
        return (500, {}, b"") if body["messages"][0]["content"] == "poison" else completion("fine")

    with ChatServer(reply) as server:
        requests = ["poison", *(str(n) for n in range(60))]
        found = answers(server, requests, deadline_seconds=1.5, requests_in_flight=2, requests_per_minute=1200)
    assert "HTTP status 500" in found["poison"].error_message
    assert (found["poison"].error_class, found["poison"].attempts) == ("service", 1)
    assert sum(answer.text == "fine" for answer in found.values()) == 60


def test_requests_per_minute_are_spread_evenly():
    with ChatServer(lambda body, n: completion("fine")) as server:
        answers(server, [str(n) for n in range(12)], requests_per_minute=600, requests_in_flight=12)
    assert server.times[-1] - server.times[0] >= 11 * 0.1 * 0.95
    assert all(later - earlier >= 0.95 for earlier, later in zip(server.times, server.times[10:], strict=False))


def test_tokens_per_minute_count_what_answers_actually_used():
    # Each answer takes ten tokens. 6,000 a minute allow ten answers a second, whatever the estimate was.
    with ChatServer(lambda body, n: completion("fine")) as server:
        answers(server, ["x"] + [str(n) for n in range(12)], tokens_per_minute=6000, requests_in_flight=1)
    assert server.times[-1] - server.times[0] >= 11 * 0.1 * 0.95


def test_a_request_budget_ends_the_statement_before_it_is_exceeded():
    with ChatServer(lambda body, n: completion("fine")) as server:
        with pytest.raises(AiFunctionError, match="requests_per_statement = 5"):
            answers(server, [str(n) for n in range(20)], requests_per_statement=5)
        assert len(server.requests) == 5


def test_a_token_budget_waits_for_requests_in_flight_and_is_never_exceeded():
    with ChatServer(lambda body, n: completion("fine")) as server:  # 10 tokens each
        with pytest.raises(AiFunctionError, match="tokens_per_statement = 100"):
            answers(server, [str(n) for n in range(50)], tokens_per_statement=100, parameters={"max_tokens": 20})
        assert 6 <= len(server.requests) <= 10


def test_calls_to_a_failing_server_pause_and_resume_once_it_recovers():
    def reply(body: dict, number: int) -> Reply:
        # On a busy machine, the failures that open the circuit breaker may take longer than two seconds.
        fails = number <= limits._FAILURES or time.monotonic() < server.times[0] + 2
        return (503, {}, b"") if fails else completion("fine")

    with ChatServer(reply) as server:
        found = answers(server, [str(n) for n in range(100)], requests_in_flight=50, deadline_seconds=60)
    assert all(answer.text == "fine" for answer in found.values())
    # The requests in flight failed. Then one probe at a time went through, after one second and two more.
    assert 120 <= len(server.requests) <= 50 + 3 + 100


@pytest.mark.parametrize("probed", [(429, {}, b""), (429, {"Retry-After": "1"}, b""), (503, {}, b""), DROPPED])
def test_a_failed_probe_is_followed_by_another_whatever_the_failure(probed, monkeypatch):
    monkeypatch.setattr(limits, "_FIRST_PAUSE", 0.2)
    replies = [(503, {}, b"")] * 20 + [probed] * 2

    with ChatServer(lambda body, n: replies[n - 1] if n <= len(replies) else completion("fine")) as server:
        found = answers(server, [str(n) for n in range(30)], requests_in_flight=20, deadline_seconds=30)
    assert all(answer.text == "fine" for answer in found.values())


def test_a_budget_used_up_by_a_failing_server_ends_the_statement():
    with ChatServer(lambda body, n: (503, {}, b"")) as server:
        with pytest.raises(AiFunctionError, match="requests_per_statement = 21"):
            answers(server, [str(n) for n in range(40)], requests_per_statement=21, requests_in_flight=8)
        assert len(server.requests) <= 21


def test_retry_after_delays_all_requests():
    def reply(body: dict, number: int) -> Reply:
        return (429, {"Retry-After": "1"}, b"") if number == 1 else completion("fine")

    with ChatServer(reply) as server:
        answers(server, [str(n) for n in range(20)], requests_in_flight=1)
    assert server.times[1] - server.times[0] >= 1


def test_unexpected_requests_and_responses_only_fail_their_own_rows():
    replies = {
        '{"x": NaN}': (200, {}, b'{"predictions": [1]}'),
        '"null"': (200, {}, b'{"predictions": [null]}'),
        '"fine"': (200, {}, b'{"predictions": ["fine"]}'),
    }

    with ChatServer(lambda body, n: replies[json.dumps(body["inputs"][0])]) as server:
        found = answers(server, list(replies), kind="mlflow")
    assert "AI_FUNCTION_HTTP_REQUEST_ERROR" in found['{"x": NaN}'].error_message
    assert "the prediction is null" in found['"null"'].error_message
    assert found['"fine"'].text == "fine"


def test_an_answer_without_text_is_an_error_and_an_answer_in_parts_is_joined():
    def reply(body: dict, number: int) -> Reply:
        part = {"type": "text", "text": "fi"}
        content = None if body["messages"][0]["content"] == "refused" else [part, {"type": "text", "text": "ne"}]
        message = {
            "choices": [{"finish_reason": "stop", "message": {"content": content}}],
            "usage": {"prompt_tokens": "7"},
        }
        return 200, {}, json.dumps(message).encode()

    with ChatServer(reply) as server:
        found = answers(server, ["refused", "parts"])
    assert "the answer has no text" in found["refused"].error_message
    assert (found["parts"].text, found["parts"].input_tokens) == ("fine", None)


def test_an_answer_that_does_not_match_the_schema_is_retried_and_then_an_error():
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'

    def reply(body: dict, number: int) -> Reply:
        prompt = body["messages"][0]["content"]
        good = prompt == "good" or (prompt == "second" and server.prompts.count("second") > 1)
        return completion('```json\n{"n": 1}\n```' if good else '{"n": "one"}')

    with ChatServer(reply) as server:
        found = answers(server, [Request(text, schema=schema) for text in ("good", "second", "never")])
        asked = Counter(server.prompts)
    assert (found["good"].text, found["second"].text) == ('{"n": 1}', '{"n": 1}')
    assert "AI_FUNCTION_HTTP_PARSE_CAST_ERROR" in found["never"].error_message
    assert "'one' is not of type 'integer'" in found["never"].error_message
    assert (asked["good"], asked["second"], asked["never"]) == (1, 2, 3)
    assert server.requests[0][0]["response_format"]["json_schema"]["schema"]["required"] == ["n"]


def test_a_server_without_schema_support_gets_the_schema_in_the_prompt():
    with ChatServer(lambda body, n: completion('{"a": 1}')) as server:
        answers(server, [Request("text", schema='{"type": "object"}')], enforces_schema=False)
    assert "response_format" not in server.requests[0][0]
    assert server.prompts == ['text\n\nAnswer with JSON alone, as this JSON schema says: {"type": "object"}']


def test_a_key_repeated_in_a_server_error_is_hidden(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sesame")
    said = b"x" * 497 + b"sesame is your key"
    with ChatServer(lambda body, n: (400, {}, said)) as server:
        found = answers(server, ["a"], api_key_env="SOME_KEY")
    assert found["a"].error_message.endswith("x***")


@pytest.mark.parametrize("key", ["two\nlines", "schl\u00fcssel"])
def test_a_key_that_is_invalid_in_a_header_is_refused_without_being_shown(monkeypatch, key):
    monkeypatch.setenv("SOME_KEY", key)
    with ChatServer(lambda body, n: completion("")) as server, pytest.raises(AiFunctionError) as caught:
        answers(server, ["a"], api_key_env="SOME_KEY")
    assert "SOME_KEY" in str(caught.value)
    assert key not in str(caught.value)


def test_a_served_model_takes_a_text_or_named_columns():
    def reply(body: dict, number: int) -> Reply:
        return 200, {}, b'{"predictions": [{"label": "a"}]}' if "inputs" in body else b'{"predictions": [3.5]}'

    with ChatServer(reply) as server:
        found = answers(server, ['"text"', '{"x": 1}'], kind="mlflow", parameters={"max_length": 3})
    assert sorted((body for body, _ in server.requests), key=str) == [
        {"dataframe_records": [{"x": 1}], "params": {"max_length": 3}},
        {"inputs": ["text"], "params": {"max_length": 3}},
    ]
    assert (found['"text"'].text, found['{"x": 1}'].text) == ('{"label": "a"}', "3.5")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[endpoints.e]\nmodel = 'm'", "base_url"),
        ("[endpoints.e]\nbase_url = 'http://u:p@h/v1'\nmodel = 'm'", "credentials"),
        ("[endpoints.e]\nbase_url = 'http://h/v1?key=k'\nmodel = 'm'", "query"),
        ("[endpoints.e]\nbase_url = 'ftp://h'\nmodel = 'm'", "http or https"),
        ("[endpoints.e]\nbase_url = 'http://h'\nmodel = 'm'\nkind = 'grpc'", "kind"),
        ("[endpoints.e]\nbase_url = 'http://h'\nmodel = 'm'\nrequests_in_flight = 0", "requests_in_flight"),
        ("[endpoints.e]\nbase_url = 'http://h'\nmodel = 'm'\nkey = 'k'", "key"),
        ("[endpoints.e]\nbase_url = 'http://h'\nmodel = 'm'\napi_key_env = 'sk-12'", "never the key itself"),
        ("[endpoints.'a b']\nbase_url = 'http://h'\nmodel = 'm'", "is not a valid endpoint name"),
        ("endpoints = 3", "one table"),
        ("[endpoints.e]\nbase_url = 'http://h'\nmodel = 'm'\nparameters = {day = 2026-01-01}", "JSON"),
        ("[endpoints", "can't be read"),
    ],
)
def test_an_invalid_endpoints_file_is_an_error_that_says_why(tmp_path, content, message):
    path = tmp_path / "endpoints.toml"
    path.write_text(content)
    with pytest.raises(BatchAssetsError, match=message):
        read_endpoints(path)


def test_the_error_for_an_unknown_endpoint_lists_the_known_ones(tmp_path):
    path = tmp_path / "endpoints.toml"
    path.write_text("[endpoints.mine]\nbase_url = 'http://127.0.0.1:1/v1'\nmodel = 'm'")
    assert configured_endpoint(path, "mine").model == "m"
    assert configured_endpoint(path, "smollm2") is None
    with pytest.raises(BatchAssetsError, match="mine, smollm2"):
        configured_endpoint(path, "other")


def test_the_embedded_server_gives_the_same_answers_in_any_order_and_can_be_stopped():
    server = EmbeddedServer("smollm2")
    started = server.start()
    assert server.start() == started
    requests = [f"Say in one sentence what a {thing} is." for thing in ("whale", "rope", "song", "lamp")]
    first = ask(started, requests)
    again = ask(started, list(reversed(requests)))
    assert all(answer.text and answer.output_tokens > 0 for answer in first.values())
    assert {key: answer.text for key, answer in first.items()} == {key: answer.text for key, answer in again.items()}
    server.stop()
    with pytest.raises(httpx.TransportError):
        httpx.get(started.base_url, timeout=2)


def test_the_embedded_server_ends_when_its_process_is_killed():
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
