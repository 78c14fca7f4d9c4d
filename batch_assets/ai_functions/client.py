"""Ask an endpoint, many requests at a time, until each has an answer or a final error."""

import asyncio
import json
import os
import queue
import random
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
from batch_assets.ai_functions.limits import Breaker, Budget, BudgetUsedUpError, Pace, Share
from batch_assets.ai_functions.protocols import PROTOCOLS, SchemaError, UnreadableResponseError
from batch_assets.ai_functions.requests import NO_ANSWER, AiFunctionError, Answer, Request

_RETRIED = {408, 409, 425, 429}
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
# A model that missed the schema that often will hardly meet it.
_SCHEMA_ATTEMPTS = 3
# Bytes of text that make a token, for what is reserved before a request is sent: few, to stay below a limit.
_BYTES_PER_TOKEN = 2
_UNKNOWN_ANSWER_TOKENS = 256
_LONGEST_MESSAGE = 500
# Answers are written down as they come, but together with those that come within a fraction of the time that the
# first one took: fewer files, and hardly a longer wait for the next request.
_TOGETHER, _LONGEST_TOGETHER = 1 / 100, 0.25

_Answers = queue.SimpleQueue[tuple[Request, Answer, asyncio.Future[None]] | None]


class _TryAgainError(Exception):
    """The server may answer later; ``wait`` is how long it asked to be left alone, in seconds."""

    def __init__(self, name: str, message: str, wait: float | None = None, *, is_sick: bool = True) -> None:
        super().__init__(message)
        self.name = name
        self.wait = wait
        self.is_sick = is_sick


class Client:
    """Asks one endpoint for one task at a time, over connections that are kept alive between calls.

    An event loop in a thread of its own does the asking, so that the caller can write answers down meanwhile.

    Args:
        endpoint: the server.
        share: the part of its limits that this client may use.

    Raises:
        AiFunctionError: the key of the endpoint is not set here.
    """

    def __init__(self, endpoint: Endpoint, share: Share) -> None:
        self._endpoint, self._share = endpoint, share
        self._protocol = PROTOCOLS[endpoint.kind]
        self._key = _key(endpoint)
        self._url = f"{endpoint.base_url}{self._protocol.path}"
        self._requests = Pace(share.requests_per_minute)
        self._tokens = Pace(share.tokens_per_minute)
        self._budget = Budget(endpoint, share)
        self._breaker = Breaker()
        self._last_answer = 0.0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=f"ai_query {endpoint.name}", daemon=True).start()
        self._http = asyncio.run_coroutine_threadsafe(self._connect(), self._loop).result()

    def ask(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Answer]]]:
        """Ask every request and yield the answers as they come, those that come in quick succession together.

        A request counts as in flight until the caller asks for more answers, as what it was given is then written
        down: a kill costs no more answers than there may be requests in flight.

        Raises:
            AiFunctionError: the endpoint refuses access, gives no answer at all, or its budget is used up.
        """
        answers: _Answers = queue.SimpleQueue()
        asking = asyncio.run_coroutine_threadsafe(self._ask_all(iter(requests), answers), self._loop)
        asking.add_done_callback(lambda _: answers.put(None))
        answered = answers.get()
        try:
            while answered is not None:
                together = [answered]
                time.sleep(min((answered[1].seconds or 0) * _TOGETHER, _LONGEST_TOGETHER))
                for _ in range(answers.qsize()):
                    answered = answers.get()
                    if answered is not None:
                        together.append(answered)
                yield [(request, answer) for request, answer, _ in together]
                self._loop.call_soon_threadsafe(_let_go, [kept for _, _, kept in together])
                answered = answers.get() if answered is not None else None
        finally:
            asking.cancel()
        try:
            asking.result()
        except* AiFunctionError as group:
            # One is enough to tell; the others say the same of other requests.
            raise group.exceptions[0] from None

    def close(self) -> None:
        """Close the connections and end the thread."""
        asyncio.run_coroutine_threadsafe(self._http.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _ask_all(self, requests: Iterator[Request], answers: _Answers) -> None:
        used_up: list[BudgetUsedUpError] = []

        async def ask_some() -> None:
            for request in requests:
                try:
                    answer = await self._answer(request)
                except BudgetUsedUpError as error:
                    used_up.append(error)  # what is in flight costs, and so is waited for
                else:
                    kept: asyncio.Future[None] = self._loop.create_future()
                    answers.put((request, answer, kept))
                    await kept
                if used_up:
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(self._share.requests_in_flight):
                group.create_task(ask_some())
        if used_up:
            raise used_up[0]

    async def _answer(self, request: Request) -> Answer:
        try:
            return await self._answer_in_time(request)
        except AiFunctionError:
            raise
        except Exception as error:  # whatever this request is made of, the others go on
            message = f"[AI_FUNCTION_HTTP_REQUEST_ERROR] {type(error).__name__}: {error}"
            return Answer(None, self._masked(message)[:_LONGEST_MESSAGE], model=self._endpoint.model)

    async def _answer_in_time(self, request: Request) -> Answer:
        deadline: float | None = None
        longest, misses = _FIRST_WAIT, 0
        failure = _TryAgainError("AI_FUNCTION_HTTP_REQUEST_ERROR", "the server fails, and is left alone")
        estimate = self._estimate(request)
        while True:
            await self._requests.wait()
            await self._tokens.wait(estimate)
            await self._budget.reserve(estimate)
            # Limits may take long, and are not the server's fault: the time of the row begins after them.
            deadline = deadline or time.monotonic() + self._endpoint.deadline_seconds
            used: int | None = 0
            try:
                async with self._breaker.passing(deadline) as is_probe:
                    used = None
                    answer = await self._attempt(request, is_probe=is_probe)
                used = (answer.prompt_tokens or 0) + (answer.completion_tokens or 0) or None
                return answer
            except SchemaError as error:
                used = error.tokens
                misses += 1
                if misses == _SCHEMA_ATTEMPTS:
                    message = f"[AI_FUNCTION_HTTP_PARSE_CAST_ERROR] {error}"
                    return Answer(None, message, model=self._endpoint.model)
            except TimeoutError:
                return self._give_up(failure)
            except _TryAgainError as error:
                failure = error
                # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
                wait = random.uniform(0, longest)
                longest = min(longest * 2, _LONGEST_WAIT)
                if time.monotonic() + max(wait, error.wait or 0) > deadline:
                    return self._give_up(error)
                await asyncio.sleep(wait)
            finally:
                # What an attempt took is unknown where its answer doesn't say, or never came.
                spent = estimate if used is None else used
                self._tokens.correct(spent - estimate)
                await self._budget.settle(estimate, spent, was_sent=used != 0)

    async def _attempt(self, request: Request, *, is_probe: bool) -> Answer:
        """One attempt; the breaker hears of it."""
        began = time.monotonic()
        try:
            answer = await self._ask_once(request)
        except _TryAgainError as error:
            await self._breaker.failed(is_sick=error.is_sick, is_probe=is_probe)
            self._breaker.leave_alone(error.wait or 0)
            raise
        except SchemaError:
            await self._answered()
            raise
        await self._answered()
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

    async def _answered(self) -> None:
        await self._breaker.succeeded()
        self._last_answer = time.monotonic()

    def _estimate(self, request: Request) -> int:
        parameters = self._endpoint.parameters | json.loads(request.parameters)
        most = parameters.get("max_tokens", parameters.get("max_completion_tokens", _UNKNOWN_ANSWER_TOKENS))
        text = len(request.content.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN
        return text + (int(most) if isinstance(most, int | float) else _UNKNOWN_ANSWER_TOKENS)

    def _masked(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _give_up(self, error: _TryAgainError) -> Answer:
        """An error of the row, if others are being answered.

        Raises:
            AiFunctionError: no other is: it is the endpoint that doesn't answer.
        """
        message = (
            f"[{error.name}] the endpoint {self._endpoint.name} {NO_ANSWER} "
            f"{self._endpoint.deadline_seconds:g} seconds: {self._masked(str(error))}"
        )
        if self._breaker.is_open or self._last_answer < time.monotonic() - self._endpoint.deadline_seconds / 2:
            raise AiFunctionError(message) from error
        return Answer(None, message, model=self._endpoint.model, is_final=False)

    async def _ask_once(self, request: Request) -> Answer:
        endpoint = self._endpoint
        body = json.dumps(self._protocol.body(endpoint, request), allow_nan=False).encode()
        try:
            async with self._http.post(self._url, data=body, allow_redirects=False) as response:
                content = await response.read()
        except TimeoutError as error:
            raise _TryAgainError(
                "AI_FUNCTION_HTTP_REQUEST_ERROR", f"no answer to a request within {endpoint.timeout_seconds:g} seconds"
            ) from error
        except aiohttp.ClientError as error:
            raise _TryAgainError("AI_FUNCTION_HTTP_REQUEST_ERROR", f"{type(error).__name__}: {error}") from error
        status = response.status
        if status in _RETRIED or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            is_sick = status != HTTPStatus.TOO_MANY_REQUESTS
            raise _TryAgainError(
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
                "which is not followed: set its base_url to where it really is"
            )
        if status != HTTPStatus.OK:
            said = self._masked(content.decode(errors="replace"))[:_LONGEST_MESSAGE]
            # On lines of its own: it may repeat the document, and only the first line is shown outside the table.
            message = f"[AI_FUNCTION_HTTP_REQUEST_ERROR] HTTP status {status}\n{said}"
            return Answer(None, message, model=endpoint.model)
        try:
            return self._protocol.read(endpoint, request, content)
        except UnreadableResponseError as error:
            raise _TryAgainError("AI_FUNCTION_INVALID_HTTP_RESPONSE", str(error)) from error


def _key(endpoint: Endpoint) -> str | None:
    if endpoint.api_key_env is None:
        return None
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if not (key.isascii() and key.isprintable()):
        # The error of an HTTP library would show it.
        raise AiFunctionError(
            f"[AI_FUNCTION_HTTP_REQUEST_ERROR] what is in {endpoint.api_key_env} is no key: it has characters that no "
            "HTTP header takes"
        )
    if not key:
        raise AiFunctionError(
            f"[AI_FUNCTION_HTTP_REQUEST_ERROR] the endpoint {endpoint.name} takes its key from the environment "
            f"variable {endpoint.api_key_env}, which is not set on the workers"
        )
    return key


def _let_go(kept: Sequence[asyncio.Future[None]]) -> None:
    for future in kept:
        if not future.done():  # the request may have been cancelled
            future.set_result(None)


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for an address (HTTPS_PROXY, NO_PROXY and their like)."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds of the header Retry-After, which is a number or a date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("Retry-After")
    if value is None:
        return None
    if value.isdigit():
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
