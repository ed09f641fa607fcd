"""Shared by all suites: a time budget, no skips in CI, and `--soak` for slow tests."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BUDGET = pytest.StashKey[float]()
BEGAN = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--budget",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="time budget of the suite: a longer run is reported, twice the budget is a failure",
    )
    parser.addoption(
        "--soak",
        type=Path,
        metavar="FILE",
        help="run only the tests marked soak, and append their results to FILE",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: too slow for CI; only `make soak` runs it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    soaking = config.getoption("--soak") is not None
    left = [item for item in items if (item.get_closest_marker("soak") is not None) != soaking]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


@pytest.fixture
def figures(record_property) -> Iterator[dict[str, str]]:
    """A test's measurements by name; `make soak` shows them in its table."""
    measured: dict[str, str] = {}
    yield measured
    for name, value in measured.items():
        record_property(name, value)


class Rows:
    """Adds JSON lines to the soak's file: one per test at the start, one more when a test ends."""

    def __init__(self, config: pytest.Config) -> None:
        self.path = config.getoption("--soak")
        self.reports: dict[str, list[pytest.TestReport]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self.add(test=item.nodeid, passed=None, seconds=0, figures={})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.setdefault(report.nodeid, []).append(report)
        if report.when == "teardown":
            seen = self.reports.pop(report.nodeid)
            self.add(
                test=report.nodeid,
                passed=all(each.outcome == "passed" for each in seen),
                seconds=round(sum(each.duration for each in seen)),
                figures=dict(report.user_properties),
            )

    def add(self, **row: object) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[BEGAN] = time.monotonic()
    if session.config.getoption("--soak") and not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(Rows(session.config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        report.outcome, report.longrepr = "failed", f"CI must not skip tests: {report.longrepr[2]}"
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if seconds_over(session.config) > budget(session.config) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    over = seconds_over(config)
    if over > 0:
        line = f"{over:.0f} s above the suite's budget of {budget(config):.0f} s"
        line += "; twice the budget is a failure" if over <= budget(config) else ": more than twice"
        terminalreporter.write_sep("=", line, red=True)


def budget(config: pytest.Config) -> float:
    return config.getoption("--budget")


def seconds_over(config: pytest.Config) -> float:
    """Seconds above the budget; negative if the suite is within its budget."""
    return time.monotonic() - config.stash[BEGAN] - budget(config)
