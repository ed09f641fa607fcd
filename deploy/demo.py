"""Run the training DAG on a started stack, with live progress, and report the result."""

import contextlib
import json
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from deploy.airflow_api import ConflictError, NotFoundError, path
from deploy.errors import DeployError
from deploy.messages import print_lines
from deploy.places import TRAINING_DAG
from deploy.running import Stack

TASK_ORDER = ("check", "pull", "scan", "extract", "split", "train", "evaluate", "publish")
POLL_SECONDS = 1.0
FINAL_STATES = ("success", "failed")


@dataclass(frozen=True)
class TaskRow:
    """One task instance as the demo shows it."""

    name: str
    queue: str
    state: str
    worker: str
    seconds: float | None


class Run:
    """One run of a DAG."""

    def __init__(self, stack: Stack, dag_id: str, run_id: str) -> None:
        self._stack = stack
        self._workers: dict[tuple[str, int], str] = {}
        self._address = path("dags", dag_id, "dagRuns", run_id)
        self.dag_id, self.run_id = dag_id, run_id

    @property
    def logs(self) -> str:
        """The folder or web address of the run's task logs."""
        return self._stack.logs_of(self.dag_id, self.run_id)

    def state(self) -> str:
        """The run's state: queued, running, success or failed."""
        return str(self._get("")["state"])

    def rows(self) -> list[TaskRow]:
        """Every task instance, in the order of the pipeline."""
        answer = self._get("/taskInstances?limit=100")
        instances = sorted(
            answer["task_instances"],
            key=lambda each: (_order(each["task_id"]), each["map_index"]),
        )
        return [self._row(instance) for instance in instances]

    def result(self, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """The JSON object that a task's command printed last."""
        return dict(self.xcom(task_id, map_index=map_index))

    def xcom(self, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """The XCom that a task pushed under a key; None if it pushed none."""
        address = path("taskInstances", task_id, "xcomEntries", key)
        query = f"?map_index={map_index}&deserialize=true"
        try:
            value = self._get(f"/{address}{query}")["value"]
        except NotFoundError:
            return None
        try:
            return json.loads(value)
        except (TypeError, ValueError):  # the value is not JSON text: return it as it is
            return value

    def _row(self, instance: dict[str, Any]) -> TaskRow:
        task_id, map_index = instance["task_id"], instance["map_index"]
        state = instance["state"] or "waiting"
        return TaskRow(
            name=task_id if map_index < 0 else f"{task_id} {map_index + 1}",
            queue=instance["queue"],
            state=state,
            worker=self._worker(task_id, map_index) if instance["start_date"] else "",
            seconds=_seconds(instance),
        )

    def _worker(self, task_id: str, map_index: int) -> str:
        """The worker that took a task; empty if not known yet. A known worker is cached."""
        key = task_id, map_index
        if not self._workers.get(key):
            self._workers[key] = str(self.xcom(task_id, "worker", map_index) or "")
        return self._workers[key]

    def _get(self, rest: str) -> Any:
        return self._stack.answer(lambda: self._stack.api.get(f"{self._address}{rest}"))


def _order(task_id: str) -> tuple[int, str]:
    """Sort key: first the pipeline's tasks in pipeline order, then all other tasks by name."""
    return TASK_ORDER.index(task_id) if task_id in TASK_ORDER else len(TASK_ORDER), task_id


def trigger(stack: Stack, parameters: dict[str, Any], dag_id: str = TRAINING_DAG) -> Run:
    """Start a run.

    Raises:
        DeployError: Airflow refuses the parameters, or the stack does not stay up.
    """
    _wait_for_dag(stack, dag_id)
    run_id = f"on-demand__{datetime.now(UTC).isoformat(timespec='microseconds')}"
    body = {"dag_run_id": run_id, "logical_date": None, "conf": parameters}

    def post() -> None:
        # A conflict means that an earlier try of this POST created the run; its answer was lost.
        with contextlib.suppress(ConflictError):
            stack.api.post(path("dags", dag_id, "dagRuns"), body)

    stack.answer(post)
    return Run(stack, dag_id, run_id)


def unfinished(stack: Stack, parameters: dict[str, Any]) -> Run | None:
    """Find the unfinished run of an interrupted demo with these parameters; None if there is none.

    Airflow continues that run as soon as the stack is up. A second run would only wait until the
    first one frees the GPU slot.
    """
    _wait_for_dag(stack, TRAINING_DAG)
    query = "?state=queued&state=running&order_by=run_after&limit=100"
    address = path("dags", TRAINING_DAG, "dagRuns")
    runs = stack.answer(lambda: stack.api.get(f"{address}{query}"))["dag_runs"]
    same = [each["dag_run_id"] for each in runs if each["conf"] == parameters]
    return Run(stack, TRAINING_DAG, same[0]) if same else None


def _wait_for_dag(stack: Stack, dag_id: str) -> None:
    stack.wait_until(lambda: stack.api.exists(path("dags", dag_id)), f"DAG {dag_id} was")


def _seconds(instance: dict[str, Any]) -> float | None:
    if not instance["start_date"]:
        return None
    start = datetime.fromisoformat(instance["start_date"])
    end = instance["end_date"]
    until = datetime.fromisoformat(end) if end else datetime.now(start.tzinfo)
    return (until - start).total_seconds()


def follow(run: Run, stack: Stack, console: Console, seconds: float = math.inf) -> bool:
    """Show the run until it ends: a live table on a terminal, else a line for each change.

    Returns:
        Whether the run ended within `seconds`.

    Raises:
        DeployError: the run failed, or a component does not stay up.
    """
    shown: dict[str, str] = {}
    give_up_at = time.monotonic() + seconds
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while (state := run.state()) not in FINAL_STATES:
            if time.monotonic() > give_up_at:
                return False
            stack.check()
            rows = run.rows()
            if console.is_terminal:
                live.update(task_table(rows), refresh=True)
            else:
                _print_changes(rows, shown, console)
            time.sleep(POLL_SECONDS)
    if not console.is_terminal:
        _print_changes(run.rows(), shown, console)
    if state == "failed":
        failed = [row.name for row in run.rows() if row.state == "failed"]
        raise DeployError(f"the run failed in {', '.join(failed)}; the reason is in {run.logs}")
    return True


def _print_changes(rows: list[TaskRow], shown: dict[str, str], console: Console) -> None:
    for row in rows:
        if shown.get(row.name) != row.state and row.state in ("running", "success", "failed"):
            seconds = "" if row.seconds is None else f" after {row.seconds:.1f} s"
            ended = "" if row.state == "running" else seconds
            console.print(f"{row.name}: {row.state}{ended} [{row.queue}]", markup=False)
        shown[row.name] = row.state


def task_table(rows: list[TaskRow], title: str = TRAINING_DAG) -> Table:
    """Make a table of the tasks with their queues, workers, states and seconds."""
    table = Table("task", "queue", "worker", "state", title=title, title_justify="left")
    table.add_column("seconds", justify="right")
    for row in rows:
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        table.add_row(row.name, row.queue, row.worker, row.state, seconds)
    return table


def show_workers(run: Run, console: Console) -> None:
    """Print which worker took each task.

    Raises:
        DeployError: a task ran on a worker of another queue.
    """
    rows = run.rows()
    console.print(task_table(rows, run.dag_id))
    for row in rows:
        if row.worker.partition("@")[0] != row.queue:
            raise DeployError(f"task {row.name} of queue {row.queue} ran on worker {row.worker!r}")


def summarise(run: Run, console: Console) -> None:
    """Print the table of tasks, the accuracy with its interval, and where the results are.

    Raises:
        DeployError: a task ran on a worker of another queue.
    """
    show_workers(run, console)
    train, evaluation = run.result("train"), run.result("evaluate")
    published = run.result("publish")
    low, high = evaluation["accuracy_interval"]
    lines = {
        "test accuracy": f"{evaluation['accuracy']:.3f}, 95% interval {low:.3f} to {high:.3f}, "
        f"{evaluation['n_tracks']} tracks",
        "computed on": train["device_name"],
        "model": train["run"],
        "published": f"{published['path']} of {published['repository']}",
        "plots": evaluation["evaluation"],
        "task logs": run.logs,
    }
    print_lines(lines, console)
