import os
import subprocess
import sys

import psutil
import pytest

from fleet.contract import queues
from fleet.workers import worker
from fleet.workers.gpus import Gpu
from fleet.workers.worker import describe, memory_gib, usable_cores, worker_command

GPU = Gpu(uuid="GPU-1", name="NVIDIA H200")


def test_a_worker_consumes_its_queue_alone_with_its_slots():
    command = worker_command(queues()["gpu"], 4)
    flags = dict(zip(command[3::2], command[4::2], strict=False))
    assert flags["--queues"] == "gpu"
    assert flags["--concurrency"] == "4"
    assert flags["--celery-hostname"] == "gpu@%h"


def test_a_gpu_worker_without_a_gpu_says_so_plainly():
    assert "no NVIDIA GPU is visible" in describe(queues()["gpu"], [], 1)
    assert "NVIDIA H200 (GPU-1)" in describe(queues()["gpu"], [GPU], 1)
    assert "(GPU-1) (2 more GPUs are not used: too" in describe(queues()["gpu"], [GPU] * 3, 1)
    assert describe(queues()["cpu"], [], 2).endswith("computes on the CPU; tasks at a time: 2")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("memory.max", "2147483648", 2.0),
        ("memory/memory.limit_in_bytes", "1073741824", 1.0),
        ("memory.max", "max", None),
        ("memory.max", str(2**62), None),
    ],
)
def test_a_containers_memory_counts_where_it_is_less(tmp_path, monkeypatch, name, text, expected):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(worker, "CGROUP", tmp_path)
    assert memory_gib() == (expected or psutil.virtual_memory().total / 2**30)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota_of_cores_counts_where_it_is_less(
    tmp_path, monkeypatch, files, expected
):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(worker, "CGROUP", tmp_path)
    assert usable_cores() == (expected or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("", "http://webserver:8080/execution/"),
        ("http://127.0.0.1:8080", "http://webserver:8080/execution/"),
        ("https://example.org/", "http://webserver:8080/execution/"),
        ("https://example.org/airflow/", "http://webserver:8080/airflow/execution/"),
        ("https://example.org/e", "http://webserver:8080/e/execution/"),
        ("https://example.org/a/b", "http://webserver:8080/a/b/execution/"),
    ],
)
def test_a_worker_calls_airflow_below_the_path_of_its_base_url(base, expected):
    assert worker.below(base, "http://webserver:8080/execution/") == expected
    assert worker.below(base, expected) == expected  # the path is not added twice


def test_an_unknown_queue_is_one_line_and_exit_1():
    result = subprocess.run(
        [sys.executable, "-m", "fleet", "worker", "trianing"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr == (
        f"error: queue 'trianing' is not in deploy/queues.toml; use one of {', '.join(queues())}\n"
    )
