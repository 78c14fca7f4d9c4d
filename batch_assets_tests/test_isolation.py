"""Calls in another process: their results, their errors, and what happens when the process dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from batch_assets import isolation
from batch_assets.errors import BatchAssetsError
from batch_assets.isolation import end_isolated_process, isolated


def numbers(count: int) -> Iterator[tuple[int, int]]:
    print("libraries print")
    for number in range(count):
        yield number, os.getpid()


def die(number: int) -> Iterator[int]:
    yield 1
    os.kill(os.getpid(), number)


def leave(status: int) -> Iterator[int]:
    os._exit(status)
    yield 1


def sleep(seconds: float) -> Iterator[int]:
    yield os.getpid()
    time.sleep(seconds)


def spoil(text: bytes) -> Iterator[int]:
    yield 1
    os.write(int(sys.argv[1]), text)
    yield 2


class OddError(Exception):
    """An error that can't be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def fail(error: Exception | None) -> Iterator[int]:
    yield 1
    raise error or OddError("no", "luck")


@pytest.fixture(autouse=True)
def _ended():
    yield
    end_isolated_process()


def test_results_arrive_one_by_one_from_a_process_that_is_kept():
    found = list(isolated(numbers, 3))
    assert [number for number, _ in found] == [0, 1, 2]
    (process,) = {process for _, process in found}
    assert process != os.getpid()
    assert list(isolated(numbers, 1)) == [(0, process)]
    assert list(isolated(numbers, 0)) == []


def test_a_call_that_is_not_read_to_its_end_leaves_nothing_for_the_next_one():
    some = isolated(numbers, 5)
    assert next(some)[0] == 0
    some.close()
    assert [number for number, _ in isolated(numbers, 2)] == [0, 1]


@pytest.mark.parametrize(
    ("function", "argument", "how"),
    [(die, signal.SIGKILL, "the signal SIGKILL"), (die, signal.SIGABRT, "the signal SIGABRT"), (leave, 3, "status 3")],
)
def test_a_process_that_dies_is_an_error_here_and_the_next_call_gets_another_one(function, argument, how):
    with pytest.raises(BatchAssetsError, match=f"the process that ran the model ended with .*{how}"):
        list(isolated(function, argument))
    assert [number for number, _ in isolated(numbers, 1)] == [0]


def test_an_answer_that_cannot_be_read_is_an_error_and_not_waited_for():
    with pytest.raises(BatchAssetsError, match="an answer that can't be read"):
        list(isolated(spoil, b"not a pickle\n"))
    assert [number for number, _ in isolated(numbers, 1)] == [0]


def test_a_call_inside_another_one_is_refused():
    for _ in isolated(numbers, 1):
        with pytest.raises(RuntimeError, match="read the results of the last call"):
            list(isolated(numbers, 1))


def test_errors_are_raised_here_with_their_class_and_a_traceback():
    with pytest.raises(BatchAssetsError, match="do something") as caught:
        list(isolated(fail, BatchAssetsError("do something")))
    assert "in fail" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="OddError: no luck"):
        list(isolated(fail, None))
    assert [number for number, _ in isolated(numbers, 1)] == [0]


def test_the_process_ends_with_the_one_that_started_it():
    code = (
        "import os, signal\nfrom batch_assets_tests.test_isolation import sleep\n"
        "from batch_assets.isolation import isolated\n"
        "print(next(isolated(sleep, 600)), flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(30)
    assert isolation._running is None
