"""Run code that may kill its process, such as a model on a GPU, in a process of its own, which is kept for later calls.

The process is started as ``python -m batch_assets.isolation``. It reads calls from its standard input, writes results
to its standard output, and ends when its standard input closes: when the process that started it ends or dies.
"""

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from batch_assets.errors import BatchAssetsError

T = TypeVar("T")


@dataclass(frozen=True)
class _Result:
    """One value that the function yielded."""

    value: Any


@dataclass(frozen=True)
class _End:
    """The function has returned, or raised an error."""

    error: Exception | None = None


def isolated(function: Callable[..., Iterable[T]], *arguments: Any) -> Iterator[T]:
    """Yield what a generator function yields, which runs in another process.

    Args:
        function: a function of a module; it, its arguments and what it yields must be picklable.
        arguments: its arguments.

    Raises:
        BatchAssetsError: the process died.
        Exception: the function raised it.
    """
    with _one_call_at_a_time:
        process = _running_process()
        assert process.stdin is not None
        assert process.stdout is not None
        is_over = False
        try:
            try:
                pickle.dump((function, arguments), process.stdin)
                process.stdin.flush()
                while isinstance(reply := pickle.load(process.stdout), _Result):
                    yield reply.value
            except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
                raise BatchAssetsError(
                    f"the process that ran the model ended with {_how(process.wait())}: its messages are in the log of "
                    "this step"
                ) from error
            is_over = True
            if reply.error is not None:
                raise reply.error
        finally:
            if not is_over:  # what is left of the results would be taken for those of the next call
                end_isolated_process()


def end_isolated_process() -> None:
    """End the process, which frees the memory of its models; the next call starts another one."""
    global _process
    if _process is not None:
        _process.kill()
        _process.wait()
    _process = None


def _running_process() -> "subprocess.Popen[bytes]":
    global _process
    if _process is None or _process.poll() is not None:
        # Its modules are found as those of this process. Ctrl+C in a terminal must end only this process.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        _process = subprocess.Popen(
            [sys.executable, "-m", "batch_assets.isolation"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    return _process


def _how(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"the signal {signal.Signals(-status).name}"


_one_call_at_a_time = threading.Lock()
_process: "subprocess.Popen[bytes] | None" = None


def _serve() -> None:
    """Answer calls until standard input closes."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as replies:
        # Libraries may print.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        while True:
            try:
                function, arguments = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            end = _End()
            try:
                for value in function(*arguments):
                    replies.write(pickle.dumps(_Result(value)))
                    replies.flush()
            except Exception as error:  # raised again by the caller
                end = _End(_picklable(error))
            replies.write(pickle.dumps(end))
            replies.flush()
            del function, arguments
            _free_memory()


def _picklable(error: Exception) -> Exception:
    """The error with its traceback as a note, or another one with the same message if it can't be pickled."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of any kind: the class decides how it is pickled
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    # Pickles name the classes of the module, not those of this script.
    from batch_assets import isolation

    isolation._serve()
