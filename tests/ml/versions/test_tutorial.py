"""The tutorial's commands work, one after the other, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
TUTORIAL = (REPOSITORY / "docs" / "tutorial.md").read_text()


def blocks() -> list[str]:
    """The tutorial's command blocks, except `make setup`, which has to run before the tests."""
    found = re.findall(r"^```\n(.*?)^```", TUTORIAL, re.M | re.S)
    assert found[0].startswith("make setup\n")
    return found[1:]


@pytest.mark.timeout(600)
def test_the_tutorial(tmp_path):
    (tmp_path / "deploy").symlink_to(REPOSITORY / "deploy")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = []
    for block in blocks():
        quick = block.replace("--epochs 10", "--epochs 1")
        words = ["bash", "-e", "-c", quick]
        ended = subprocess.run(
            words, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert ended.returncode == 0, block + ended.stderr
        said.append(ended.stdout)
    assert len(said) >= 8
    assert '"accuracy"' in said[4]
    assert re.fullmatch(r"model/shufflenet_v2_x0_5-\w+\.v1", said[-1].splitlines()[0]), said[-1]
