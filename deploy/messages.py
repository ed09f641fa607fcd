"""What the commands say on the way: progress on standard error, addresses on standard output."""

import sys

from rich.console import Console

from deploy.components import ADMIN
from deploy.demo import DAG_ID, print_lines
from deploy.stack import Stack


def report(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


def print_addresses(stack: Stack, admin_password: str, flower_password: str) -> None:
    """Print where to look, and where the passwords are."""
    lines = {
        "Airflow": f"{stack.web_address}  (user {ADMIN}, {admin_password})",
        "Flower": f"{stack.flower_address}  (user {ADMIN}, {flower_password})",
        "logs": stack.logs,
    }
    print_lines(lines, Console())


def tell_schedule(stack: Stack, daily: bool) -> None:
    """Print whether trainings start by themselves, and when the next one does."""
    if not daily:
        report(f"{DAG_ID} runs on demand; with DAILY=1 also at midnight UTC")
        return
    stack.wait_until(lambda: bool(_next_run(stack)), "the schedule was")
    report(f"{DAG_ID} runs next at {_next_run(stack)} (DAILY=1), and on demand")


def _next_run(stack: Stack) -> str | None:
    """The time at which Airflow makes the next run of the training; None without a schedule."""
    found: str | None = stack.api.get(f"dags/{DAG_ID}")["next_dagrun_run_after"]
    return found
