"""What a process may use is what it was allotted, not what the machine has."""

import math
import os
import resource

import pytest

from common import limits


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        ("0::/a/b", {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, 4),
        ("0::/../elsewhere", {"cpu.max": "200000 100000\n"}, 2),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "300000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 3),
        ("4:cpu:/of/host", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("4:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("1:memory:/a", {"a/cpu.max": "100000 100000\n"}, math.inf),
        ("0::/", {}, math.inf),
    ],
)
def test_quotas_of_control_groups_and_of_those_above_count(group, files, cores, tmp_path):
    write(tmp_path / "proc/self/cgroup", f"{group}\n")
    for name, text in files.items():
        write(tmp_path / "sys/fs/cgroup" / name, text)
    assert limits._by_control_groups(tmp_path) == cores


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert limits._by_control_groups(tmp_path) == math.inf


def test_cores_are_the_least_of_what_affinity_quota_and_slurm_give(monkeypatch):
    monkeypatch.setattr(os, "process_cpu_count", lambda: 8, raising=False)
    monkeypatch.setattr(limits, "_by_control_groups", lambda root: 6.5)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert limits.cores() == 7
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert limits.cores() == 3
    for text in ("", "0", "two"):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", text)
        assert limits.cores() == 7
    monkeypatch.setattr(limits, "_by_control_groups", lambda root: 0.1)
    assert limits.cores() == 1


def test_without_affinity_as_on_macos_the_cores_present_count(monkeypatch):
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 11)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert limits._by_affinity() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert limits._by_affinity() == 11


def test_files_are_counted_and_their_limit_is_raised():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
        left = limits.files_left()
        with open(os.devnull), open(os.devnull):  # noqa: PTH123
            assert limits.files_left() == left - 2
        limits.allow_many_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(before[1], 10240), before[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        limits.allow_many_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= before[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_other_systems_share_memory_without_a_limit(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert limits.shared_memory_left() == math.inf
