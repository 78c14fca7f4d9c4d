"""What this process may use of its machine, within the limits of a container, and whether another process is alive."""

import math
import os
from pathlib import Path

import psutil

# How much later than its first trace a process may seem to have started, because clocks are adjusted.
_CLOCK_TOLERANCE = 60.0


def cores(root: Path = Path("/")) -> int:
    """Number of CPU cores that this process may use: its affinity and the quotas of its control groups, rounded up.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _control_groups(root, "cpu"):
        # https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files: "max 100000", or quota and period
        quota, _, period = _content(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _content(folder / "cpu.cfs_quota_us"), _content(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            allowed = min(allowed, math.ceil(int(quota) / int(period)))
    return max(allowed, 1)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process can still get, on its machine and in its control groups.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    available = int(psutil.virtual_memory().available)
    for folder in _control_groups(root, "memory"):
        limit, used = _content(folder / "memory.max"), _content(folder / "memory.current")
        cache = "inactive_file"
        if not limit:
            limit, used = _content(folder / "memory.limit_in_bytes"), _content(folder / "memory.usage_in_bytes")
            cache = "total_inactive_file"
        if limit.isdigit() and used.isdigit():
            usage = dict(line.split() for line in _content(folder / "memory.stat").splitlines())
            # The kernel frees inactive page cache when programs need memory.
            available = min(available, int(limit) - int(used) + int(usage.get(cache, 0)))
    return available


def is_alive(pid: int, seen: float) -> bool:
    """Whether the process that was seen with an id, in seconds since 1970, still runs; the id may be reused."""
    try:
        return bool(psutil.Process(pid).create_time() <= seen + _CLOCK_TOLERANCE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _control_groups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's control group and of those that it is in, for versions 2 and 1.

    In a container, the paths in ``/proc/self/cgroup`` may not exist: what is mounted is its own group.
    """
    mounted = root / "sys/fs/cgroup"
    found = [mounted, mounted / controller]
    for line in _content(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        group = (mounted / names if names else mounted) / path.lstrip("/")
        found += [group, *(parent for parent in group.parents if mounted in parent.parents)]
    return list(dict.fromkeys(found))


def _content(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # the system has no file for this limit
        return ""
