import subprocess
import sys

from fleet.contract import queues
from fleet.gpus import Gpu
from fleet.worker import describe, worker_command

GPU = Gpu(uuid="GPU-1", name="NVIDIA H200", memory_bytes=141 * 1024**3)


def test_a_worker_consumes_its_queue_alone_with_its_slots():
    command = worker_command(queues()["gpu"], n_cores=16)
    flags = dict(zip(command[3::2], command[4::2], strict=False))
    assert flags["--queues"] == "gpu"
    assert flags["--concurrency"] == "1"
    assert flags["--celery-hostname"] == "gpu@%h"
    assert "16" in worker_command(queues()["cpu"], n_cores=16)


def test_a_gpu_worker_without_a_gpu_says_so_plainly():
    assert "no NVIDIA GPU is visible" in describe(queues()["gpu"], [])
    assert "NVIDIA H200 (GPU-1)" in describe(queues()["gpu"], [GPU])
    assert describe(queues()["cpu"], []).endswith("computes on the CPU")


def test_an_unknown_queue_is_one_line_and_exit_1():
    result = subprocess.run(
        [sys.executable, "-m", "fleet", "worker", "trianing"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr == (
        "error: queue 'trianing' is not in the contract; known: ['cpu', 'gpu']\n"
    )
