"""Cores and memory within the limits of a container, and whether a process is still the same."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from batch_assets.machine import available_memory, cores, is_alive

GIBIBYTE = 1024**3


def machine(root: Path, files: dict[str, str], groups: str = "0::/\n") -> Path:
    for name, content in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture(autouse=True)
def sixty_four_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


@pytest.mark.parametrize(
    ("files", "groups", "expected"),
    [
        ({}, "0::/\n", 64),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, "0::/\n", 64),
        ({"sys/fs/cgroup/cpu.max": "200000 100000"}, "0::/\n", 2),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, "0::/\n", 2),
        ({"sys/fs/cgroup/cpu.max": "10000 100000"}, "0::/\n", 1),
        # A container that shows the path of its group on the host, which it can't see.
        ({"sys/fs/cgroup/cpu.max": "400000 100000"}, "0::/kubepods/pod1/c2\n", 4),
        # The limit of a parent counts too.
        (
            {"sys/fs/cgroup/a/cpu.max": "300000 100000", "sys/fs/cgroup/a/b/cpu.max": "max 100000"},
            "0::/a/b\n",
            3,
        ),
        # Version 1
        (
            {"sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "200000", "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000"},
            "4:memory:/m\n1:cpu:/a\n",
            2,
        ),
        (
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            "1:cpu,cpuacct:/\n",
            64,
        ),
    ],
)
def test_cores_are_those_that_the_control_group_allows(tmp_path, files, groups, expected):
    assert cores(machine(tmp_path, files, groups)) == expected


def test_cores_are_those_that_the_affinity_allows(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert cores(machine(tmp_path, {"sys/fs/cgroup/cpu.max": "400000 100000"})) == 1


def test_memory_is_what_the_control_group_has_left(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 16 * GIBIBYTE}))
    assert available_memory(tmp_path) == 16 * GIBIBYTE
    files = {
        "sys/fs/cgroup/memory.max": f"{4 * GIBIBYTE}",
        "sys/fs/cgroup/memory.current": f"{3 * GIBIBYTE}",
        "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {GIBIBYTE}",
    }
    assert available_memory(machine(tmp_path / "two", files)) == 2 * GIBIBYTE
    files = {
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{4 * GIBIBYTE}",
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": f"{3 * GIBIBYTE}",
        "sys/fs/cgroup/memory/a/memory.stat": "total_inactive_file 7",
    }
    assert available_memory(machine(tmp_path / "one", files, "4:memory:/a\n")) == GIBIBYTE + 7


def test_a_process_that_got_the_id_of_another_one_is_not_taken_for_it():
    now = time.time()
    assert is_alive(os.getpid(), now)
    # The process that had this id an hour ago is not this one.
    assert not is_alive(os.getpid(), psutil.Process().create_time() - 3600)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert not is_alive(gone.pid, now)
