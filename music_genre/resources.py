"""How many cores and how much memory this process may use, in a container or not."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Count the CPU cores in this process's affinity mask, up to the container's quota."""
    cores = len(os.sched_getaffinity(0))
    quota = _cgroup_cores()
    return max(1, min(cores, int(quota))) if quota else cores


def usable_memory() -> int:
    """Return the free memory of the machine or of the container, whichever is less, in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    held = _cgroup_memory()
    return free if held is None else min(free, max(0, held))


def _cgroup_memory() -> int | None:
    """Return the bytes left under the cgroup v2 or v1 limit; None if there is no limit.

    Cached file pages do not count as used.
    """
    v2 = ("memory.max", "memory.current", "memory.stat", "file")
    v1 = tuple(f"memory/memory.{name}" for name in ("limit_in_bytes", "usage_in_bytes", "stat"))
    for limit, used, statistics, pages in (v2, (*v1, "total_cache")):
        try:
            counts = dict(line.split() for line in (CGROUP / statistics).read_text().splitlines())
            in_use = int((CGROUP / used).read_text()) - int(counts[pages])
            return int((CGROUP / limit).read_text()) - in_use
        except (OSError, ValueError, KeyError):
            continue
    return None


def _cgroup_cores() -> float | None:
    """Read the container's CPU quota in cores, from cgroup v2 or v1; None if no quota is set."""
    try:
        if (CGROUP / "cpu.max").exists():
            quota, period = (CGROUP / "cpu.max").read_text().split()
        else:
            quota = (CGROUP / "cpu/cpu.cfs_quota_us").read_text()
            period = (CGROUP / "cpu/cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else None
    except (OSError, ValueError):
        return None
