"""HTTP client: sends many requests to an endpoint at once and retries until each has an answer or a final error."""

import asyncio
import json
import os
import queue
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.ai_functions.limits import Budget, BudgetUsedUpError, CircuitBreaker, RateLimiter, Share
from batch_assets.ai_functions.protocols import PROTOCOLS, SchemaError, UnreadableResponseError
from batch_assets.ai_functions.requests import AiFunctionError, Request
from batch_assets.engines.contract import Completion, ErrorClass

_RETRIED = {408, 409, 425, 429}
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
# A model that misses the schema this often is unlikely to match it on another try.
_SCHEMA_ATTEMPTS = 3
# What OpenAI, Azure, vLLM and llama.cpp call a document that is too long, or whose content they refuse.
_REFUSED_DOCUMENT = re.compile(
    "context_length_exceeded|exceed_context_size|maximum context length|content_filter|content_policy_violation"
)
# For estimates before a request is sent: a low number overestimates tokens, which keeps usage below the limits.
_BYTES_PER_TOKEN = 2
_DEFAULT_ANSWER_TOKENS = 256
_MAX_MESSAGE_LENGTH = 500
# Answers that arrive close together are stored in one file. The client waits for more for this fraction of the first
# answer's duration, up to a number of seconds, so the next request is barely delayed.
_GATHER_FRACTION, _MAX_GATHER_SECONDS = 1 / 100, 0.25

_Answers = queue.SimpleQueue[tuple[Request, Completion, asyncio.Future[None]] | None]


class _RetryableError(Exception):
    """The request may succeed later.

    ``wait`` is the Retry-After of the server in seconds; ``is_sick`` counts the failure for the circuit breaker.
    """

    def __init__(self, name: str, message: str, wait: float | None = None, *, is_sick: bool = True) -> None:
        super().__init__(message)
        self.name = name
        self.wait = wait
        self.is_sick = is_sick


class Client:
    """Sends requests to one endpoint for one task at a time; connections stay open between calls.

    An event loop in a separate thread sends the requests, so that the caller can store answers in the meantime.

    Args:
        endpoint: the endpoint to call.
        share: the part of its limits that this client may use.

    Raises:
        AiFunctionError: the endpoint's key is missing or invalid.
    """

    def __init__(self, endpoint: Endpoint, share: Share) -> None:
        self._endpoint, self._share = endpoint, share
        self._protocol = PROTOCOLS[endpoint.kind]
        self._key = _key(endpoint)
        self._url = f"{endpoint.base_url}{self._protocol.path}"
        self._requests = RateLimiter(share.requests_per_minute)
        self._tokens = RateLimiter(share.tokens_per_minute)
        self._budget = Budget(endpoint, share)
        self._breaker = CircuitBreaker()
        self._last_answer = 0.0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=f"ai_query {endpoint.name}", daemon=True).start()
        self._http = asyncio.run_coroutine_threadsafe(self._connect(), self._loop).result()

    def ask(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Completion]]]:
        """Send all requests and yield the answers as they arrive; those that arrive close together come in one list.

        A request counts as in flight until the caller requests the next list, which means that it has stored the
        last one. So a killed process loses at most as many answers as requests may be in flight.

        Raises:
            AiFunctionError: the endpoint refuses access, doesn't answer at all, or its budget is used up.
        """
        answers: _Answers = queue.SimpleQueue()
        sending = asyncio.run_coroutine_threadsafe(self._send_all(iter(requests), answers), self._loop)
        sending.add_done_callback(lambda _: answers.put(None))
        answered = answers.get()
        try:
            while answered is not None:
                gathered = [answered]
                time.sleep(min((answered[1].seconds or 0) * _GATHER_FRACTION, _MAX_GATHER_SECONDS))
                for _ in range(answers.qsize()):
                    answered = answers.get()
                    if answered is not None:
                        gathered.append(answered)
                yield [(request, answer) for request, answer, _ in gathered]
                self._loop.call_soon_threadsafe(_release, [stored for _, _, stored in gathered])
                answered = answers.get() if answered is not None else None
        finally:
            sending.cancel()
        try:
            sending.result()
        except* AiFunctionError as group:
            # The other errors in the group say the same about other requests.
            raise group.exceptions[0] from None

    def close(self) -> None:
        """Close the connections and end the thread."""
        asyncio.run_coroutine_threadsafe(self._http.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _send_all(self, requests: Iterator[Request], answers: _Answers) -> None:
        budget_errors: list[BudgetUsedUpError] = []

        async def worker() -> None:
            for request in requests:
                try:
                    answer = await self._answer(request)
                except BudgetUsedUpError as error:
                    budget_errors.append(error)  # requests in flight cost anyway: wait for their answers
                else:
                    stored: asyncio.Future[None] = self._loop.create_future()
                    answers.put((request, answer, stored))
                    await stored
                if budget_errors:
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(self._share.requests_in_flight):
                group.create_task(worker())
        if budget_errors:
            raise budget_errors[0]

    async def _answer(self, request: Request) -> Completion:
        try:
            return await self._answer_before_deadline(request)
        except AiFunctionError:
            raise
        except Exception as error:  # one bad request must not stop the others
            message = f"[AI_FUNCTION_HTTP_REQUEST_ERROR] {type(error).__name__}: {error}"
            return self._failed(self._masked(message)[:_MAX_MESSAGE_LENGTH], ErrorClass.SERVICE)

    async def _answer_before_deadline(self, request: Request) -> Completion:
        deadline: float | None = None
        max_wait, misses = _FIRST_WAIT, 0
        failure = _RetryableError(
            "AI_FUNCTION_HTTP_REQUEST_ERROR", "no request was sent, because the endpoint keeps failing"
        )
        estimate = self._estimate_tokens(request)
        while True:
            await self._requests.wait()
            await self._tokens.wait(estimate)
            await self._budget.reserve(estimate)
            # The wait for rate limits may be long and is not the server's fault: the row's time starts after it.
            deadline = deadline or time.monotonic() + self._endpoint.deadline_seconds
            used: int | None = 0
            try:
                async with self._breaker.passing(deadline) as is_probe:
                    used = None
                    answer = await self._attempt(request, is_probe=is_probe)
                used = (answer.input_tokens or 0) + (answer.output_tokens or 0) or None
                return answer
            except SchemaError as error:
                used = error.tokens
                misses += 1
                if misses == _SCHEMA_ATTEMPTS:
                    message = f"[AI_FUNCTION_HTTP_PARSE_CAST_ERROR] {error}"
                    return self._failed(message, ErrorClass.MODEL)
            except TimeoutError:  # no request was sent
                return self._give_up(failure, attempts=0)
            except _RetryableError as error:
                failure = error
                # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
                wait = random.uniform(0, max_wait)
                max_wait = min(max_wait * 2, _LONGEST_WAIT)
                if time.monotonic() + max(wait, error.wait or 0) > deadline:
                    return self._give_up(error)
                await asyncio.sleep(wait)
            finally:
                # If there is no answer, or it doesn't report its usage, count the estimate.
                tokens = estimate if used is None else used
                self._tokens.correct(tokens - estimate)
                await self._budget.settle(estimate, tokens, was_sent=used != 0)

    async def _attempt(self, request: Request, *, is_probe: bool) -> Completion:
        """Make one attempt and report its outcome to the circuit breaker."""
        began = time.monotonic()
        try:
            answer = await self._post(request)
        except _RetryableError as error:
            await self._breaker.failed(is_sick=error.is_sick, is_probe=is_probe)
            self._breaker.pause(error.wait or 0)
            raise
        except SchemaError:
            await self._record_success()
            raise
        await self._record_success()
        return replace(answer, seconds=time.monotonic() - began)

    async def _connect(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            connector=aiohttp.TCPConnector(limit=self._share.requests_in_flight),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._endpoint.timeout_seconds),
            proxy=_proxy(self._url),
        )

    async def _record_success(self) -> None:
        await self._breaker.succeeded()
        self._last_answer = time.monotonic()

    def _estimate_tokens(self, request: Request) -> int:
        parameters = self._endpoint.parameters | json.loads(request.parameters)
        answer = parameters.get("max_tokens", parameters.get("max_completion_tokens", _DEFAULT_ANSWER_TOKENS))
        prompt = len(request.content.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN
        return prompt + (int(answer) if isinstance(answer, int | float) else _DEFAULT_ANSWER_TOKENS)

    def _masked(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _failed(self, message: str, error_class: ErrorClass, attempts: int = 1) -> Completion:
        return Completion.failed(message, error_class, attempts=attempts, model=self._endpoint.model)

    def _give_up(self, error: _RetryableError, attempts: int = 1) -> Completion:
        """Return an error for this row if the endpoint answers other requests.

        Raises:
            AiFunctionError: the endpoint doesn't answer any requests.
        """
        message = (
            f"[{error.name}] the endpoint {self._endpoint.name} gave no answer within "
            f"{self._endpoint.deadline_seconds:g} seconds: {self._masked(str(error))}"
        )
        if self._breaker.is_open or self._last_answer < time.monotonic() - self._endpoint.deadline_seconds / 2:
            raise AiFunctionError(message) from error
        return self._failed(message, ErrorClass.SERVICE, attempts)

    async def _post(self, request: Request) -> Completion:
        endpoint = self._endpoint
        body = json.dumps(self._protocol.body(endpoint, request), allow_nan=False).encode()
        try:
            async with self._http.post(self._url, data=body, allow_redirects=False) as response:
                content = await response.read()
        except TimeoutError as error:
            raise _RetryableError(
                "AI_FUNCTION_HTTP_REQUEST_ERROR", f"a request timed out after {endpoint.timeout_seconds:g} seconds"
            ) from error
        except aiohttp.ClientError as error:
            raise _RetryableError("AI_FUNCTION_HTTP_REQUEST_ERROR", f"{type(error).__name__}: {error}") from error
        status = response.status
        if status in _RETRIED or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            is_sick = status != HTTPStatus.TOO_MANY_REQUESTS
            raise _RetryableError(
                "AI_FUNCTION_HTTP_REQUEST_ERROR", f"HTTP status {status}", _retry_after(response), is_sick=is_sick
            )
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise AiFunctionError(
                f"[AI_FUNCTION_HTTP_REQUEST_ERROR] the endpoint {endpoint.name} refuses access (HTTP status {status}): "
                f"check the key in {endpoint.api_key_env or 'api_key_env, which is not set'}"
            )
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            raise AiFunctionError(
                f"[AI_FUNCTION_HTTP_REQUEST_ERROR] the endpoint {endpoint.name} redirects (HTTP status {status}), "
                "and redirects are not followed: set its base_url to the final address"
            )
        if status != HTTPStatus.OK:
            excerpt = self._masked(content.decode(errors="replace"))[:_MAX_MESSAGE_LENGTH]
            # The excerpt starts a new line: it may repeat the document, and only first lines are shown elsewhere.
            message = f"[AI_FUNCTION_HTTP_REQUEST_ERROR] HTTP status {status}\n{excerpt}"
            return self._failed(message, _class_of(status, excerpt))
        try:
            return self._protocol.read(endpoint, request, content)
        except UnreadableResponseError as error:
            raise _RetryableError("AI_FUNCTION_INVALID_HTTP_RESPONSE", str(error)) from error


def _class_of(status: int, response: str) -> ErrorClass:
    """What caused a response that will not be retried now."""
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or _REFUSED_DOCUMENT.search(response):
        return ErrorClass.DOCUMENT
    return ErrorClass.SERVICE


def _key(endpoint: Endpoint) -> str | None:
    if endpoint.api_key_env is None:
        return None
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if not (key.isascii() and key.isprintable()):
        # The HTTP library's own error would show the key.
        raise AiFunctionError(
            f"[AI_FUNCTION_HTTP_REQUEST_ERROR] {endpoint.api_key_env} doesn't hold a valid key: it has characters that "
            "HTTP headers don't allow"
        )
    if not key:
        raise AiFunctionError(
            f"[AI_FUNCTION_HTTP_REQUEST_ERROR] the key of the endpoint {endpoint.name} is missing on the workers: set "
            f"the environment variable {endpoint.api_key_env} there"
        )
    return key


def _release(stored: Sequence[asyncio.Future[None]]) -> None:
    for future in stored:
        if not future.done():  # the request may have been cancelled
            future.set_result(None)


def _proxy(url: str) -> str | None:
    """Return the proxy for an address from HTTPS_PROXY, NO_PROXY and similar variables."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Return the seconds of the Retry-After header, which is a number or a date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("Retry-After")
    if value is None:
        return None
    if value.isdigit():
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
