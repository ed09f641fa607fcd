import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAKE_DRIVER = Path(__file__).parent.parent / "fakes" / "nvml.c"
ASK = """
import dataclasses, json
from fleet.gpus import list_gpus
print(json.dumps([dataclasses.asdict(gpu) for gpu in list_gpus()]))
"""


def listed_gpus(library_path: str) -> list[dict]:
    environment = os.environ | {"LD_LIBRARY_PATH": library_path}
    answer = subprocess.check_output([sys.executable, "-c", ASK], env=environment)
    return json.loads(answer)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the fake driver needs gcc")
def test_gpus_come_in_the_drivers_order(tmp_path):
    library = tmp_path / "libnvidia-ml.so.1"
    command = ["gcc", "-shared", "-fPIC", "-DN_GPUS=3", "-o", str(library), str(FAKE_DRIVER)]
    subprocess.run(command, check=True)
    gpus = listed_gpus(str(tmp_path))
    assert [gpu["uuid"] for gpu in gpus] == ["GPU-1", "GPU-2", "GPU-3"]
    assert gpus[0]["name"] == "Fake GPU"
    assert gpus[0]["memory_bytes"] == 8 * 1024**3


def test_a_damaged_driver_is_no_gpu(tmp_path):
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    assert listed_gpus(str(tmp_path)) == []
