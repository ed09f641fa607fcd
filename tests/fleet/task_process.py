"""Stands where Airflow's task process stands: a fork that runs one CommandOperator.

As in Airflow, the process leads a group of its own and SIGTERM calls `on_kill`.
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

from fleet import outcome as outcome_module
from fleet.operators import CommandOperator


class Recorder:
    def __init__(self):
        self.lines, self.times = [], []

    def info(self, line, *arguments):
        self.lines.append(line % arguments if arguments else line)
        self.times.append(time.monotonic())

    def warning(self, line, *arguments):
        """Airflow warns that it is not the caller of execute."""


@dataclass
class Task:
    pid: int
    report: int

    def outcome(self) -> dict:
        with open(self.report) as file:
            text = file.read()
        os.waitpid(self.pid, 0)
        return json.loads(text)


def start_task(
    *command: str, rescheduled_since=None, s3_connection=None, **environment: str
) -> Task:
    report, theirs = os.pipe()
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.environ.update(environment)
        operator = CommandOperator(task_id="task", command=command, s3_connection=s3_connection)
        _run(operator, tell, theirs, rescheduled_since)
    os.close(theirs)
    os.close(tell)
    with open(ready, "rb") as file:
        file.read()
    return Task(pid, report)


def _run(operator: CommandOperator, ready: int, report: int, rescheduled_since) -> None:
    """Never returns; a fork of pytest must not go on as pytest."""
    try:
        outcome = _execute(operator, ready, rescheduled_since)
        with open(report, "w") as file:
            json.dump(outcome, file)
    finally:
        sys.stderr.flush()
        os._exit(0)


def _execute(operator: CommandOperator, ready: int, rescheduled_since) -> dict:
    pushed = {}
    operator._cached_logger = outcome_module.logger = recorder = Recorder()
    signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())
    os.close(ready)
    outcome = {"raised": None, "message": None, "result": None}
    try:
        ti = SimpleNamespace(
            xcom_push=pushed.__setitem__, get_first_reschedule_date=lambda _: rescheduled_since
        )
        outcome["result"] = operator.execute({"ti": ti})
    except Exception as error:
        outcome |= {"raised": type(error).__name__, "message": str(error)}
    return outcome | {"lines": recorder.lines, "times": recorder.times, "pushed": pushed}
