"""A stand-in for Airflow's task process: a fork that runs one CommandOperator.

As in Airflow, the process leads its own process group and SIGTERM calls `on_kill`.
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

from fleet.operators import outcome as outcome_module
from fleet.operators.command import CommandOperator


class Recorder:
    def __init__(self):
        self.lines, self.times, self.errors = [], [], []

    def info(self, line, *arguments):
        self.lines.append(line % arguments if arguments else line)
        self.times.append(time.monotonic())

    def error(self, line, *arguments):
        self.info(line, *arguments)
        self.errors.append(self.lines[-1])

    def warning(self, line, *arguments):
        """Drop Airflow's warning that `execute` was called from outside Airflow."""


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
    *command: str, state="running", store=None, s3_connection=None, **environment: str
) -> Task:
    report, theirs = os.pipe()
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.environ.update(environment)
        operator = CommandOperator(task_id="task", command=command, s3_connection=s3_connection)
        _run(operator, tell, theirs, context_of(operator, state, store))
    os.close(theirs)
    os.close(tell)
    with open(ready, "rb") as file:
        file.read()
    return Task(pid, report)


class Store(dict):
    """A stand-in for the task's state store."""

    set = dict.__setitem__


def context_of(operator: CommandOperator, state: str, store: dict | None) -> dict:
    ti = SimpleNamespace(
        dag_id="dag",
        run_id="run",
        task_id="task",
        map_index=-1,
        try_number=2,
        pushed={},
        get_task_states=lambda **_: {"run": {"task": state}},
    )
    ti.xcom_push = ti.pushed.__setitem__
    return {"ti": ti, "task": operator, "task_state_store": Store(store or {})}


def _run(operator: CommandOperator, ready: int, report: int, context: dict) -> None:
    """Run the operator and exit: a fork of pytest must not run more tests."""
    try:
        outcome = _execute(operator, ready, context)
        with open(report, "w") as file:
            json.dump(outcome, file)
    finally:
        sys.stderr.flush()
        os._exit(0)


def _execute(operator: CommandOperator, ready: int, context: dict) -> dict:
    operator._cached_logger = outcome_module.logger = recorder = Recorder()
    signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())
    os.close(ready)
    outcome = {"raised": None, "message": None, "result": None}
    try:
        outcome["result"] = operator.execute(context)
    except BaseException as error:
        outcome |= {"raised": type(error).__name__, "message": str(error)}
        recorder.info("Airflow's own lines")
        context["exception"] = error
        for callback in operator.on_failure_callback:
            callback(context)
    told = {"lines": recorder.lines, "times": recorder.times, "errors": recorder.errors}
    return outcome | told | {"pushed": context["ti"].pushed, "store": context["task_state_store"]}
