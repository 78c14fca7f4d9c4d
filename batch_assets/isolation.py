"""Run code that may kill its process, such as a model on a GPU, in a process of its own, which is kept for later calls.

The process is started as ``python -m batch_assets.isolation FD PARENT``. It reads calls from its standard input, writes
results to the file descriptor, and ends with the process that started it.
"""

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from batch_assets.errors import BatchAssetsError

T = TypeVar("T")

_STANDARD_ERROR = 2
# A process whose pipe is closed is about to end.
_SECONDS_TO_DIE = 60


@dataclass(frozen=True)
class _State:
    """What the caller's process has changed since the other process was started."""

    environment: Mapping[str, str]
    path: Sequence[str]
    folder: str

    @classmethod
    def now(cls) -> "_State":
        """The state of this process."""
        return cls(dict(os.environ), list(sys.path), str(Path.cwd()))

    def restore(self) -> None:
        """Give this process the same state."""
        os.environ.clear()
        os.environ.update(self.environment)
        sys.path[:] = self.path
        os.chdir(self.folder)


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
    global _is_busy
    with _lock:
        if _is_busy:  # a generator of this thread
            raise RuntimeError("read the results of the last call to their end first")
        _is_busy, is_over = True, False
        try:
            process, replies = _running_process()
            assert process.stdin is not None
            try:
                pickle.dump(_State.now(), process.stdin)
                pickle.dump((function, arguments), process.stdin)
                process.stdin.flush()
                while isinstance(reply := pickle.load(replies), _Result):
                    yield reply.value
            except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
                is_dead = isinstance(error, EOFError | BrokenPipeError)
                how = _how(process.wait(_SECONDS_TO_DIE)) if is_dead else "an answer that can't be read"
                raise BatchAssetsError(
                    f"the process that ran the model ended with {how}: see its messages above, or in the step's log"
                ) from error
            is_over = True
            if reply.error is not None:
                raise reply.error
        finally:
            _is_busy = False
            if not is_over:  # what is left of the results would be taken for those of the next call
                end_isolated_process()


def end_isolated_process() -> None:
    """End the process, which frees the memory of its models; the next call starts another one."""
    global _running
    with _lock:
        if _running is not None:
            process, replies = _running
            process.kill()
            process.wait()
            replies.close()
        _running = None


def _running_process() -> "tuple[subprocess.Popen[bytes], BinaryIO]":
    global _running
    if _running is None or _running[0].poll() is not None:
        end_isolated_process()
        read, write = os.pipe()
        # Its modules are found as those of this process.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(
            [sys.executable, "-m", "batch_assets.isolation", str(write), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=_STANDARD_ERROR,  # libraries may print
            env=environment,
            pass_fds=[write],
            start_new_session=True,  # Ctrl+C in a terminal must end only this process
        )
        os.close(write)
        _running = process, os.fdopen(read, "rb")
    return _running


def _how(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"the signal {signal.Signals(-status).name}"


_lock = threading.RLock()
_is_busy = False
_running: "tuple[subprocess.Popen[bytes], BinaryIO] | None" = None


def _serve(replies: BinaryIO, parent: int) -> None:
    """Answer calls until standard input closes or the parent dies."""
    threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    while True:
        try:
            pickle.load(sys.stdin.buffer).restore()
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


def _end_with(parent: int) -> None:
    """End this process soon after its parent has died, in the middle of a call."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


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

    isolation._serve(os.fdopen(int(sys.argv[1]), "wb"), int(sys.argv[2]))
