"""Answer the requests of one Spark task: reuse known answers, request the missing ones, store every answer."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from batch_assets.ai_functions.client import Client
from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.ai_functions.limits import Share
from batch_assets.ai_functions.requests import AiFunctionError, Request
from batch_assets.engines.contract import Completion
from batch_assets.scoring.completions import CompletionStore, FinishedWork

# One client easily handles this many concurrent requests; only endpoints that accept more get more tasks.
_REQUESTS_PER_CLIENT = 64
# Statements for which a worker process keeps answers and connections.
_MAX_STATEMENTS = 4


def concurrent_tasks(endpoint: Endpoint, slots: int) -> int:
    """Return how many tasks should call an endpoint at once: few, because its limits are divided among them."""
    if endpoint.has_budget:
        return 1
    return min(slots, -(-endpoint.requests_in_flight // _REQUESTS_PER_CLIENT))


@dataclass(frozen=True)
class CallContext:
    """Context of the calls of one statement, or of all plain SQL calls of a session.

    Args:
        id: key of the statement's answers on the workers; each run of a statement has its own.
        endpoints: endpoints that may be called, by name.
        finished: answers that exist already, and the store for new ones.
        tasks: number of tasks that call an endpoint at the same time, by endpoint.
        calls: number of calls in the statement that share the endpoint's budget.
        call: name of one call; workers keep a separate client for each.
        per_stage: treat each Spark stage as its own statement, because plain SQL offers no other way to separate
            statements.
    """

    id: str
    endpoints: Mapping[str, Endpoint]
    finished: FinishedWork
    tasks: Mapping[str, int]
    calls: int = 1
    call: str = ""
    per_stage: bool = False

    def endpoint(self, name: str) -> Endpoint:
        """Return an endpoint by name.

        Raises:
            AiFunctionError: there is no endpoint with this name.
        """
        if name not in self.endpoints:
            known = ", ".join(sorted(self.endpoints)) or "none"
            raise AiFunctionError(f"ai_query: there is no endpoint {name!r}; configured: {known}")
        return self.endpoints[name]

    @contextmanager
    def work(self) -> "Iterator[TaskAnswers]":
        """Yield this process's answers for the statement; an error in the block stops all tasks of the statement."""
        from pyspark import TaskContext

        task = TaskContext.get()
        finished, key = self.finished, self.id
        if self.per_stage:
            key = f"{self.id}/{task.stageId() if task else uuid.uuid4()}"
            finished = replace(finished, store=replace(finished.store, folder=key))
        if key not in _answers_by_statement:
            if len(_answers_by_statement) == _MAX_STATEMENTS:
                _answers_by_statement.pop(next(iter(_answers_by_statement))).close()
            _answers_by_statement[key] = TaskAnswers(finished)
        elif task:
            _answers_by_statement[key].task = task.taskAttemptId()
        reason = finished.store.stopped()
        if reason is not None:
            raise AiFunctionError(reason)
        try:
            yield _answers_by_statement[key]
        except AiFunctionError as error:
            # Spark retries the task, and the retry must not send requests.
            finished.store.stop(str(error))
            raise
        except Exception as error:
            finished.store.stop(f"{type(error).__name__}: {error}")
            raise


class TaskAnswers:
    """The answers and clients that a worker process holds for one statement."""

    def __init__(self, finished: FinishedWork) -> None:
        self._finished = finished
        self._known, self._attempts = finished.load()
        self._clients: dict[tuple[str, str], Client] = {}
        self.task = self._loaded_for = -1

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()

    def answer(
        self, context: CallContext, endpoint: Endpoint, requests: Sequence[Request | None], *, fail_on_error: bool
    ) -> list[Completion | None]:
        """Return the completion of each request, None for None. Equal requests are sent once.

        Args:
            context: the call that the requests belong to.
            endpoint: the endpoint to call.
            requests: one request for each row.
            fail_on_error: whether one failed request fails the statement.

        Raises:
            AiFunctionError: the endpoint refuses access, doesn't answer at all, or its budget is used up; with
                ``fail_on_error``, also when one request fails.
        """
        hashes = {request: request.hash(endpoint) for request in requests if request is not None}
        missing = [request for request, request_hash in hashes.items() if request_hash not in self._known]
        if missing and self.task != self._loaded_for:
            # Another process may have stored answers: for a task that died, or in an earlier run of the same stage.
            self._known |= self._finished.store.load()
            self._loaded_for = self.task
            missing = [request for request in missing if hashes[request] not in self._known]
        if missing:
            for answers in self._client(context, endpoint).ask(missing):
                self._store_answers(
                    [(hashes[request], answer) for request, answer in answers], fail_on_error=fail_on_error
                )
        found = [None if request is None else self._known[hashes[request]] for request in requests]
        error = next((item.error_message for item in found if item and item.error_message), None)
        if fail_on_error and error is not None:
            raise AiFunctionError(error)
        return found

    def _client(self, context: CallContext, endpoint: Endpoint) -> Client:
        key = (context.call, endpoint.name)
        if key not in self._clients:
            share = Share.of(endpoint, context.tasks[endpoint.name], context.calls)
            self._clients[key] = Client(endpoint, share)
        return self._clients[key]

    def _store_answers(self, answers: Sequence[tuple[str, Completion]], *, fail_on_error: bool) -> None:
        completions = {
            request_hash: replace(answer, request_hash=request_hash, completed_at=datetime.now(UTC))
            for request_hash, answer in answers
        }
        self._known |= {request_hash: self._with_earlier(item) for request_hash, item in completions.items()}
        # Errors that fail the statement are not stored, so that a rerun requests them again.
        self._finished.store.write(
            [item for item in completions.values() if item.error_message is None or not fail_on_error]
        )
        error = next((item.error_message for item in completions.values() if item.error_message), None)
        if fail_on_error and error is not None:
            raise AiFunctionError(error)

    def _with_earlier(self, completion: Completion) -> Completion:
        """A completion whose attempts include those of earlier runs."""
        if completion.attempts is None:
            return completion
        return replace(completion, attempts=completion.attempts + self._attempts[completion.request_hash])


_answers_by_statement: dict[str, TaskAnswers] = {}


def temporary_store(folder: str) -> CompletionStore:
    """Return a store for answers that only one statement uses."""
    return CompletionStore(folder, uuid.uuid4().hex, {})
