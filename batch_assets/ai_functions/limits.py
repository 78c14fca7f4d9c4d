"""Limits of one task's requests to an endpoint: rate, budget, and a circuit breaker."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.ai_functions.requests import AiFunctionError

# After this many failures in a row without an answer, the server is the cause, not the requests.
_FAILURES = 20
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


class BudgetUsedUpError(AiFunctionError):
    """A statement has used up its budget; requests in flight may still be answered."""


@dataclass(frozen=True)
class Share:
    """One call's share of an endpoint's limits in one task."""

    requests_in_flight: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    requests: int | None
    tokens: int | None

    @classmethod
    def of(cls, endpoint: Endpoint, tasks: int, calls: int) -> "Share":
        """Divide an endpoint's limits: budgets by all calls, the others by the tasks that run at the same time.

        Raises:
            AiFunctionError: a share would be less than one request.
        """
        budget = endpoint.requests_per_statement
        if endpoint.requests_in_flight < tasks or (budget is not None and budget < calls):
            raise AiFunctionError(
                f"the limits of the endpoint {endpoint.name} are too low for {tasks} parallel tasks and {calls} calls: "
                "run the statement with ai_sql(), call the endpoint in fewer branches of it, or raise "
                "requests_in_flight or requests_per_statement"
            )
        return cls(
            requests_in_flight=endpoint.requests_in_flight // tasks,
            requests_per_minute=endpoint.requests_per_minute and endpoint.requests_per_minute / tasks,
            tokens_per_minute=endpoint.tokens_per_minute and endpoint.tokens_per_minute / tasks,
            requests=budget and budget // calls,
            tokens=endpoint.tokens_per_statement and endpoint.tokens_per_statement // calls,
        )


class RateLimiter:
    """Rate limiter: spaces units evenly, because servers may refuse bursts."""

    def __init__(self, per_minute: float | None) -> None:
        self._seconds = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def wait(self, units: float = 1) -> None:
        """Wait until this many units may be used."""
        if not self._seconds:
            return
        turn = max(self._next, time.monotonic())
        self._next = turn + units * self._seconds
        await asyncio.sleep(turn - time.monotonic())

    def correct(self, units: float) -> None:
        """Add units to those that were waited for, or subtract them if negative."""
        self._next += units * self._seconds


class Budget:
    """Budget of a call in a statement: reserve before each request, and settle the actual usage afterwards."""

    def __init__(self, endpoint: Endpoint, share: Share) -> None:
        self._endpoint = endpoint
        self._requests, self._tokens = share.requests, share.tokens
        self._used = 0
        self._reserved = 0
        self._changed = asyncio.Condition()

    async def reserve(self, tokens: int) -> None:
        """Reserve one request and its tokens; if needed, wait for unused tokens of the requests in flight.

        Raises:
            BudgetUsedUpError: not enough of the budget is left.
        """
        if self._requests is not None:
            if not self._requests:
                raise self._used_up("requests_per_statement", self._endpoint.requests_per_statement)
            self._requests -= 1
        if self._tokens is None:
            return
        async with self._changed:
            while self._used + self._reserved + tokens > self._tokens:
                if not self._reserved:
                    raise self._used_up("tokens_per_statement", self._endpoint.tokens_per_statement)
                await self._changed.wait()
            self._reserved += tokens

    async def settle(self, reserved: int, used: int, *, was_sent: bool) -> None:
        """Replace a reservation with the actual usage."""
        if self._requests is not None and not was_sent:
            self._requests += 1
        if self._tokens is None:
            return
        async with self._changed:
            self._reserved -= reserved
            self._used += used
            self._changed.notify_all()

    def _used_up(self, setting: str, value: int | None) -> BudgetUsedUpError:
        return BudgetUsedUpError(
            f"the statement's budget at the endpoint {self._endpoint.name} is used up ({setting} = {value}): "
            "its answers are saved; raise the budget and continue with --resume"
        )


class CircuitBreaker:
    """Circuit breaker: stops calling an endpoint that keeps failing, then probes it with single requests.

    It also pauses when the server asks for it (Retry-After).

    https://martinfowler.com/bliki/CircuitBreaker.html
    """

    def __init__(self) -> None:
        self._failures = 0
        self._pause = _FIRST_PAUSE
        self._is_open = False
        self._is_probing = False
        self._quiet_until = 0.0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def passing(self, deadline: float) -> AsyncIterator[bool]:
        """Wait until a request may be sent, and yield whether it is a probe. Report its outcome inside the block.

        Raises:
            TimeoutError: the deadline, in seconds of the monotonic clock, has passed.
        """
        is_probe = False
        async with self._changed:
            while (left := self._quiet_until - time.monotonic()) > 0 or (self._is_open and self._is_probing):
                until_deadline = deadline - time.monotonic()
                if until_deadline <= 0:
                    raise TimeoutError
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(until_deadline, left) if left > 0 else until_deadline):
                        await self._changed.wait()
            if self._is_open:
                is_probe = self._is_probing = True
        try:
            yield is_probe
        finally:
            if is_probe:
                async with self._changed:
                    # The next probe may start, however this one ended.
                    self._is_probing = False
                    self._changed.notify_all()

    async def succeeded(self) -> None:
        """Record an answer and close the breaker."""
        async with self._changed:
            self._failures, self._pause, self._is_open = 0, _FIRST_PAUSE, False
            self._changed.notify_all()

    @property
    def is_open(self) -> bool:
        """Whether requests are paused because the server keeps failing."""
        return self._is_open

    async def failed(self, *, is_sick: bool, is_probe: bool) -> None:
        """Record a failure; ``is_sick`` is false for a server that is only overloaded."""
        async with self._changed:
            self._failures += is_sick
            if is_probe:
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            if is_probe or (self._failures >= _FAILURES and not self._is_open):
                self._is_open = True
                self._quiet_until = max(self._quiet_until, time.monotonic() + self._pause)

    def pause(self, seconds: float) -> None:
        """Pause requests because the server asked for it."""
        self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)
