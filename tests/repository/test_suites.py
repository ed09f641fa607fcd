"""Suites keep to their budgets, skip nothing in CI, and run tests marked `soak` only in a soak."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SUITE = """
import os, time
import pytest

def test_of_every_run():
    time.sleep(float(os.environ.get("SLEEP", "0")))

@pytest.mark.skip(reason="nothing to see; apt-get install something")
def test_that_wants_more():
    pass

@pytest.mark.soak
@pytest.mark.parametrize("kind", ["a", "b"])
def test_in_tens(kind, figures):
    figures["seen"] = kind
    assert kind == "a"
"""


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "test_suite.py").write_text(SUITE)
    shutil.copy(REPOSITORY / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers -ra\n")

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess:
        kept = {name: value for name, value in os.environ.items() if name != "CI"} | variables
        command = [sys.executable, "-m", "pytest", *words]
        return subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True)

    return run


def test_a_skip_is_named_with_its_remedy_and_in_ci_it_is_a_failure(suite):
    here, ci = suite(), suite(CI="true")
    assert here.returncode == 0, here.stdout
    assert "nothing to see; apt-get install something" in here.stdout
    assert ci.returncode == 1
    assert "CI must not skip tests: Skipped: nothing to see" in ci.stdout


@pytest.mark.parametrize(
    ("budget", "code", "words"),
    [
        ("60", 0, ""),
        ("3", 0, "above the suite's budget of 3 s; twice the budget is a failure"),
        ("1", 1, "above the suite's budget of 1 s: more than twice"),
    ],
)
def test_a_suite_above_its_budget_says_so_and_fails_at_twice(suite, budget, code, words):
    ended = suite("--budget", budget, SLEEP="3.2")
    assert ended.returncode == code, ended.stdout
    assert words in ended.stdout
    assert bool(words) == ("above the suite's budget" in ended.stdout)


def test_a_soak_runs_what_others_leave_out_and_keeps_figures(suite, tmp_path):
    ended = suite("--soak", "rows.jsonl")
    assert ended.returncode == 1
    assert "1 failed, 1 passed, 2 deselected" in ended.stdout
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["passed"], row["figures"]) for row in rows] == [
        (None, {}),
        (None, {}),
        (True, {"seen": "a"}),
        (False, {"seen": "b"}),
    ]
    assert "2 passed" not in suite().stdout


def test_the_page_of_the_soak_has_a_row_for_every_test_that_leaves_ci():
    page = (REPOSITORY / "docs" / "soak.md").read_text()
    marked = []
    for path in set((REPOSITORY / "tests").glob("*/test_*.py")) - {Path(__file__)}:
        for decorators, name in re.findall(
            r"((?:^@[^\n]*\n(?:^[ )][^\n]*\n)*)+)^def test_(\w+)", path.read_text(), re.M
        ):
            if "mark.soak" in decorators or "OF_A_SOAK" in decorators:
                marked.append((path.parent.name, name.replace("_", " ")))
    assert len(marked) > 5
    missing = [name for suite, name in marked if f"| {suite} | {name}" not in page]
    assert missing == []
