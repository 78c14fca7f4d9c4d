"""What an endpoint lets one task of a statement do: its pace, its budget, and when to leave a sick server alone."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.ai_functions.requests import AiFunctionError

# So many failures in a row, with no answer between them, are the server's.
_FAILURES = 20
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


class BudgetUsedUpError(AiFunctionError):
    """A statement has used up what it may; what is in flight may still be answered."""


@dataclass(frozen=True)
class Share:
    """The part of an endpoint's limits that belongs to one call in one task."""

    requests_in_flight: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    requests: int | None
    tokens: int | None

    @classmethod
    def of(cls, endpoint: Endpoint, tasks: int, calls: int) -> "Share":
        """Divide an endpoint's limits: all over those that ask at the same time, budgets over all calls.

        Raises:
            AiFunctionError: there is less than one request for each.
        """
        budget = endpoint.requests_per_statement
        if endpoint.requests_in_flight < tasks or (budget is not None and budget < calls):
            raise AiFunctionError(
                f"the limits of the endpoint {endpoint.name} are too low to be divided over {tasks} tasks that ask at "
                f"the same time and {calls} calls: run the statement with ai_sql(), ask in fewer branches of it, or "
                "raise requests_in_flight or requests_per_statement"
            )
        return cls(
            requests_in_flight=endpoint.requests_in_flight // tasks,
            requests_per_minute=endpoint.requests_per_minute and endpoint.requests_per_minute / tasks,
            tokens_per_minute=endpoint.tokens_per_minute and endpoint.tokens_per_minute / tasks,
            requests=budget and budget // calls,
            tokens=endpoint.tokens_per_statement and endpoint.tokens_per_statement // calls,
        )


class Pace:
    """At most so many units a minute, evenly spread: no burst that a server would count as too many."""

    def __init__(self, per_minute: float | None) -> None:
        self._seconds = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def wait(self, units: float = 1) -> None:
        """Wait for the turn of so many units."""
        if not self._seconds:
            return
        turn = max(self._next, time.monotonic())
        self._next = turn + units * self._seconds
        await asyncio.sleep(turn - time.monotonic())

    def correct(self, units: float) -> None:
        """Count units that turned out to be more, or fewer, than were waited for."""
        self._next += units * self._seconds


class Budget:
    """What a statement may use up: it is asked before a request is sent, and told what the request came to."""

    def __init__(self, endpoint: Endpoint, share: Share) -> None:
        self._endpoint = endpoint
        self._requests, self._tokens = share.requests, share.tokens
        self._used = 0
        self._reserved = 0
        self._changed = asyncio.Condition()

    async def reserve(self, tokens: int) -> None:
        """Take one request and so many tokens out of the budget, once those in flight leave room for them.

        Raises:
            BudgetUsedUpError: there is not that much left.
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
        """Replace what was reserved by what was used."""
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
            f"the budget of a statement at the endpoint {self._endpoint.name} is used up ({setting} = {value}): "
            "answers so far are kept; raise it and go on with --resume"
        )


class Breaker:
    """Leaves a server alone that fails and fails; then lets one request through, to see whether it is well again.

    It also leaves a server alone that asked for it (Retry-After).

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
        """Wait until a request may be sent; inside, say what came of it. Gives whether the request is a probe.

        Raises:
            TimeoutError: that is not before the deadline, in seconds of the monotonic clock.
        """
        probes = False
        async with self._changed:
            while (left := self._quiet_until - time.monotonic()) > 0 or (self._is_open and self._is_probing):
                until_deadline = deadline - time.monotonic()
                if until_deadline <= 0:
                    raise TimeoutError
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(until_deadline, left) if left > 0 else until_deadline):
                        await self._changed.wait()
            if self._is_open:
                probes = self._is_probing = True
        try:
            yield probes
        finally:
            if probes:
                async with self._changed:
                    # However the probe ended, the next one may try.
                    self._is_probing = False
                    self._changed.notify_all()

    async def succeeded(self) -> None:
        """Note that the server answered."""
        async with self._changed:
            self._failures, self._pause, self._is_open = 0, _FIRST_PAUSE, False
            self._changed.notify_all()

    @property
    def is_open(self) -> bool:
        """Whether the server is left alone because it fails."""
        return self._is_open

    async def failed(self, *, is_sick: bool, is_probe: bool) -> None:
        """Note that it didn't; a server that has too much to do is not sick."""
        async with self._changed:
            self._failures += is_sick
            if is_probe:
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            if is_probe or (self._failures >= _FAILURES and not self._is_open):
                self._is_open = True
                self._quiet_until = max(self._quiet_until, time.monotonic() + self._pause)

    def leave_alone(self, seconds: float) -> None:
        """Send nothing for a while, because the server asked for it."""
        self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)
