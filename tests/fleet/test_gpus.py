import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.fakes.driver import make_driver

ASK = """
import dataclasses, json
from fleet.workers.gpus import list_gpus
print(json.dumps([dataclasses.asdict(gpu) for gpu in list_gpus()]))
"""


def listed_gpus(library_path: str) -> list[dict]:
    environment = os.environ | {"LD_LIBRARY_PATH": library_path}
    answer = subprocess.check_output([sys.executable, "-c", ASK], env=environment)
    return json.loads(answer)


@pytest.fixture
def fake_driver(tmp_path) -> str:
    """A folder with a fake driver that reports three GPUs."""
    if shutil.which("gcc") is None:
        pytest.skip("the fake driver needs gcc; apt-get install gcc")
    return make_driver(tmp_path, 3)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        *(("GPU-2", ["GPU-2"]), ("2,0", ["GPU-1", "GPU-3"]), ("GPU-", ["GPU-1", "GPU-2", "GPU-3"])),
        *(("", []), ("-1", []), ("GPU-9", [])),
    ],
)
def test_gpus_that_were_hidden_are_not_there(fake_driver, monkeypatch, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu["uuid"] for gpu in listed_gpus(fake_driver)] == expected


def test_gpus_come_in_the_drivers_order(fake_driver):
    gpus = listed_gpus(fake_driver)
    assert [gpu["uuid"] for gpu in gpus] == ["GPU-1", "GPU-2", "GPU-3"]
    assert gpus[0]["name"] == "Fake GPU"


def test_a_sick_gpu_is_left_out(tmp_path):
    driver = make_driver(tmp_path, 3, sick=2)
    assert [gpu["uuid"] for gpu in listed_gpus(driver)] == ["GPU-1", "GPU-3"]


def test_a_damaged_driver_is_no_gpu(tmp_path):
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    assert listed_gpus(str(tmp_path)) == []
