"""Ask an OpenAI-compatible chat server, many requests at a time, until each has an answer or a final error.

https://platform.openai.com/docs/api-reference/chat
"""

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.errors import BatchAssetsError

_RETRIED = {408, 409, 425, 429}
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0


class AiFunctionError(BatchAssetsError):
    """An ai function can't go on; the message starts with the error's name."""


@dataclass(frozen=True)
class Answer:
    """What came back for one request: a text, or an error that the request itself caused."""

    text: str | None
    error_message: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model: str | None = None


class _TryAgainError(Exception):
    """The server may answer later; ``wait`` is how long it asked to be left alone, in seconds."""

    def __init__(self, name: str, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.name = name
        self.wait = wait


def ask(
    endpoint: Endpoint, requests: Sequence[str], on_answer: Callable[[str, Answer], None], in_flight: int | None = None
) -> None:
    """Ask every request once and hand over each answer as it comes.

    Args:
        endpoint: the server.
        requests: the texts, each asked as one user message.
        on_answer: takes the request and its answer.
        in_flight: requests under way at the same time, by default what the endpoint takes.

    Raises:
        AiFunctionError: the endpoint refuses its key, or doesn't answer within its deadline.
    """
    asyncio.run(_ask_all(endpoint, requests, on_answer, in_flight or endpoint.requests_in_flight))


async def _ask_all(
    endpoint: Endpoint, requests: Sequence[str], on_answer: Callable[[str, Answer], None], in_flight: int
) -> None:
    slots = asyncio.Semaphore(in_flight)
    headers = {}
    if endpoint.api_key_env is not None:
        key = os.environ.get(endpoint.api_key_env)
        if not key:
            raise AiFunctionError(
                f"[AI_FUNCTION_HTTP_REQUEST_ERROR] the endpoint {endpoint.name} takes its key from the environment "
                f"variable {endpoint.api_key_env}, which is not set on the workers"
            )
        headers["Authorization"] = f"Bearer {key}"
    async with httpx.AsyncClient(headers=headers, timeout=endpoint.timeout_seconds) as client:

        async def ask_one(request: str) -> None:
            async with slots:
                on_answer(request, await _ask_until_answered(client, endpoint, request))

        async with asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(ask_one(request))


async def _ask_until_answered(client: httpx.AsyncClient, endpoint: Endpoint, request: str) -> Answer:
    deadline = time.monotonic() + endpoint.deadline_seconds
    longest = _FIRST_WAIT
    while True:
        try:
            return await _ask_once(client, endpoint, request)
        except _TryAgainError as error:
            # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
            wait = error.wait if error.wait is not None else random.uniform(0, longest)
            longest = min(longest * 2, _LONGEST_WAIT)
            if time.monotonic() + wait > deadline:
                raise AiFunctionError(
                    f"[{error.name}] the endpoint {endpoint.name} gave no answer within "
                    f"{endpoint.deadline_seconds:g} seconds: {error}"
                ) from error
            await asyncio.sleep(wait)


async def _ask_once(client: httpx.AsyncClient, endpoint: Endpoint, request: str) -> Answer:
    body = {**endpoint.parameters, "model": endpoint.model, "messages": [{"role": "user", "content": request}]}
    try:
        response = await client.post(f"{endpoint.base_url}/chat/completions", json=body)
    except httpx.TransportError as error:
        raise _TryAgainError("AI_FUNCTION_HTTP_REQUEST_ERROR", f"{type(error).__name__}: {error}") from error
    status = response.status_code
    if status in _RETRIED or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise _TryAgainError("AI_FUNCTION_HTTP_REQUEST_ERROR", f"HTTP status {status}", _retry_after(response))
    if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        raise AiFunctionError(
            f"[AI_FUNCTION_HTTP_REQUEST_ERROR] the endpoint {endpoint.name} refuses access (HTTP status {status}): "
            f"check the key in {endpoint.api_key_env or 'api_key_env, which is not set'}"
        )
    if response.is_redirect:
        raise AiFunctionError(
            f"[AI_FUNCTION_HTTP_REQUEST_ERROR] the endpoint {endpoint.name} redirects (HTTP status {status}), which is "
            "not followed: set its base_url to where it really is"
        )
    if status != httpx.codes.OK:
        return Answer(None, f"[AI_FUNCTION_HTTP_REQUEST_ERROR] HTTP status {status}: {response.text[:500]}")
    return _read(response)


def _read(response: httpx.Response) -> Answer:
    try:
        content: dict[str, Any] = response.json()
        choice = content["choices"][0]
        text = choice["message"]["content"]
        reason = choice.get("finish_reason")
        usage = content.get("usage") or {}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _TryAgainError(
            "AI_FUNCTION_INVALID_HTTP_RESPONSE", f"the response is no chat completion ({type(error).__name__})"
        ) from error
    usage_and_model = {
        "finish_reason": reason,
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "model": content.get("model"),
    }
    if reason == "content_filter":
        message = "[AI_FUNCTION_HTTP_REQUEST_ERROR] the endpoint's content filter withheld the answer"
        return Answer(None, message, **usage_and_model)
    return Answer(str(text or ""), None, **usage_and_model)


def _retry_after(response: httpx.Response) -> float | None:
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
