"""What the system allots to this process: cores, file descriptors, shared memory."""

import contextlib
import math
import os
import resource
import sys
from pathlib import Path

MOST_FILES = 10240  # macOS refuses more, whatever the hard limit says
MOUNTS = ("sys/fs/cgroup", "sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct")  # version 2, then version 1


def cores() -> int:
    """The cores that this process may use: by its affinity, its control groups and SLURM, whichever gives least."""
    return math.ceil(min(_by_affinity(), _by_control_groups(Path("/")), _by_slurm()))


def _by_affinity():
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _by_control_groups(root):
    """Cores by the quotas of this process's control group and of those above it, perhaps a fraction or infinite."""
    try:
        lines = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return math.inf
    paths = [path.lstrip("/") for _, controllers, path in lines if {"", "cpu"} & set(controllers.split(","))]
    groups = [(root / mount, path) for mount in MOUNTS for path in paths]
    folders = {mount / above for mount, path in groups for above in (Path(path), *Path(path).parents)}
    return min(map(_quota, folders), default=math.inf)


def _quota(folder):
    """CPU seconds a second that a control group grants."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):  # absent, or no number but "max"
            quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
            return quota / period if quota > 0 else math.inf
    return math.inf


def _by_slurm():
    text = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(text) if text.isdecimal() and int(text) > 0 else math.inf


def allow_many_files() -> None:
    """Raise the number of files that may be open to what the system lets anybody have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < min(hard, MOST_FILES):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, MOST_FILES), hard))


def files_left() -> int:
    """How many more files this process may open."""
    try:
        opened = len(list(Path("/dev/fd").iterdir()))
    except OSError:
        opened = 16
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - opened


def shared_memory_left() -> float:
    """Bytes that processes can still share; only Linux keeps them in a file system of limited size."""
    if sys.platform != "linux":
        return math.inf
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize if found.f_blocks else math.inf  # no blocks: no limit
