"""What the tasks of a statement do: find what is answered already, ask for the rest, write every answer down."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from batch_assets.ai_functions.client import Client
from batch_assets.ai_functions.endpoints import Endpoint
from batch_assets.ai_functions.limits import Share
from batch_assets.ai_functions.requests import AiFunctionError, Answer, Request
from batch_assets.inference.completions import Completion, CompletionStore, FinishedWork

# One client asks so many requests at a time with ease; only an endpoint that takes more is asked by more tasks.
_REQUESTS_OF_A_CLIENT = 64
# Statements that a worker process keeps answers and connections for.
_MOST_STATEMENTS = 4


def asking_tasks(endpoint: Endpoint, slots: int) -> int:
    """Tasks that should ask an endpoint at the same time: few, so that limits need hardly be divided."""
    if endpoint.has_budget:
        return 1
    return min(slots, -(-endpoint.requests_in_flight // _REQUESTS_OF_A_CLIENT))


@dataclass(frozen=True)
class Statement:
    """One statement, or one way to call functions from plain SQL.

    Args:
        id: what workers know it by; a statement that is run again is another one.
        endpoints: those that may be asked, by name.
        finished: answers that need not be asked for again, and where new ones go.
        tasks: tasks that ask at the same time, by endpoint.
        calls: places in the statement that ask.
        call: one of them; its workers keep a client of their own for it.
        per_stage: whether each stage of Spark stands for a statement of its own, because nothing else tells them
            apart.
    """

    id: str
    endpoints: Mapping[str, Endpoint]
    finished: FinishedWork
    tasks: Mapping[str, int]
    calls: int = 1
    call: str = ""
    per_stage: bool = False

    def endpoint(self, name: str) -> Endpoint:
        """An endpoint by name.

        Raises:
            AiFunctionError: there is none.
        """
        if name not in self.endpoints:
            known = ", ".join(sorted(self.endpoints)) or "none"
            raise AiFunctionError(f"ai_query: there is no endpoint {name!r}; configured: {known}")
        return self.endpoints[name]

    @contextmanager
    def work(self) -> "Iterator[Work]":
        """What this process has for the statement; an error inside ends the statement, for all its tasks."""
        from pyspark import TaskContext

        task = TaskContext.get()
        finished, key = self.finished, self.id
        if self.per_stage:
            key = f"{self.id}/{task.stageId() if task else uuid.uuid4()}"
            finished = replace(finished, store=replace(finished.store, folder=key))
        if key not in _works:
            if len(_works) == _MOST_STATEMENTS:
                _works.pop(next(iter(_works))).close()
            _works[key] = Work(finished)
        elif task:
            _works[key].task = task.taskAttemptId()
        reason = finished.store.stopped()
        if reason is not None:
            raise AiFunctionError(reason)
        try:
            yield _works[key]
        except AiFunctionError as error:
            # Spark will start the task again, which must not ask again.
            finished.store.stop(str(error))
            raise
        except Exception as error:
            finished.store.stop(f"{type(error).__name__}: {error}")
            raise


class Work:
    """The answers and clients that a worker process has for a statement."""

    def __init__(self, finished: FinishedWork) -> None:
        self._finished = finished
        self._known = finished.load()
        self._clients: dict[tuple[str, str], Client] = {}
        self.task = self._loaded_for = -1

    def close(self) -> None:
        """Give the connections back."""
        for client in self._clients.values():
            client.close()

    def answer(
        self, statement: Statement, endpoint: Endpoint, requests: Sequence[Request | None], *, fail_on_error: bool
    ) -> list[Completion | None]:
        """The completion of each request, None for None. Equal requests are asked once.

        Raises:
            AiFunctionError: the endpoint refuses access, gives no answer at all, or its budget is used up; with
                ``fail_on_error``, also when one request fails.
        """
        hashes = {request: request.hash(endpoint) for request in requests if request is not None}
        missing = [request for request, request_hash in hashes.items() if request_hash not in self._known]
        if missing and self.task != self._loaded_for:
            # Another process may have answered: for a task that died, or when Spark ran the same stage before.
            self._known |= self._finished.store.load()
            self._loaded_for = self.task
            missing = [request for request in missing if hashes[request] not in self._known]
        if missing:
            for answers in self._client(statement, endpoint).ask(missing):
                self._keep([(hashes[request], answer) for request, answer in answers], fail_on_error=fail_on_error)
        found = [None if request is None else self._known[hashes[request]] for request in requests]
        error = next((item.error_message for item in found if item and item.error_message), None)
        if fail_on_error and error is not None:
            raise AiFunctionError(error)
        return found

    def _client(self, statement: Statement, endpoint: Endpoint) -> Client:
        key = (statement.call, endpoint.name)
        if key not in self._clients:
            share = Share.of(endpoint, statement.tasks[endpoint.name], statement.calls)
            self._clients[key] = Client(endpoint, share)
        return self._clients[key]

    def _keep(self, answers: Sequence[tuple[str, Answer]], *, fail_on_error: bool) -> None:
        completions = {request_hash: _completion(request_hash, answer) for request_hash, answer in answers}
        self._known |= completions
        # An error that ends the statement, or that may pass, is to be tried again when the statement is.
        final = {request_hash for request_hash, answer in answers if answer.is_final}
        self._finished.store.write(
            [
                item
                for request_hash, item in completions.items()
                if item.error_message is None or (request_hash in final and not fail_on_error)
            ]
        )
        error = next((item.error_message for item in completions.values() if item.error_message), None)
        if fail_on_error and error is not None:
            raise AiFunctionError(error)


_works: dict[str, Work] = {}


def _completion(request_hash: str, answer: Answer) -> Completion:
    return Completion(
        request_hash=request_hash,
        text=answer.text,
        error_message=answer.error_message,
        finish_reason=answer.finish_reason,
        input_tokens=answer.prompt_tokens,
        output_tokens=answer.completion_tokens,
        input_truncated=None,
        model=answer.model,
        model_version=None,
        completed_at=datetime.now(UTC),
        seconds=answer.seconds,
    )


def temporary_store(folder: str) -> CompletionStore:
    """A store for answers that only this statement can use."""
    return CompletionStore(folder, uuid.uuid4().hex, {})
