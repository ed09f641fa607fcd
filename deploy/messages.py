"""The output of the commands: progress on standard error, addresses on standard output."""

import contextlib
import sys
import time
from typing import Any

from rich.console import Console

from deploy.errors import DeployError
from deploy.places import ADMIN, TRAINING_DAG
from deploy.running import Stack

PARSE_SECONDS = 30.0
"""How long to wait until the training DAG is parsed; the dag-processor needs a few seconds."""


def report(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


def print_lines(lines: dict[str, str], console: Console) -> None:
    """Print names and values in two columns, without wrapping long addresses."""
    for name, value in lines.items():
        console.print(f"{name + ':':<15}{value}", markup=False, highlight=False, soft_wrap=True)


def print_addresses(stack: Stack, admin_password: str, flower_password: str) -> None:
    """Print the addresses of the web UIs, where the passwords are, and where the logs are."""
    lines = {
        "Airflow": f"{stack.public_address}  (user {ADMIN}, {admin_password})",
        "Flower": f"{stack.flower_address}  (user {ADMIN}, {flower_password})",
        "logs": stack.logs,
    }
    print_lines(lines, Console())


def tell_schedule(stack: Stack, daily: bool) -> None:
    """Print whether the training DAG runs by itself, and when it runs next."""
    if not daily:
        report(f"{TRAINING_DAG} runs on demand; with DAILY=1 also at midnight UTC")
        return
    dag = _scheduled_dag(stack)
    at = dag.get("next_dagrun_run_after")
    if dag.get("is_paused"):
        report(f"{TRAINING_DAG} is paused, so it does not run at midnight UTC until you unpause it")
    else:
        report(f"{TRAINING_DAG} runs next at {at or 'midnight UTC'} (DAILY=1), and on demand")


def _scheduled_dag(stack: Stack) -> dict[str, Any]:
    """Return the training DAG once it is paused or has a next run; {} after `PARSE_SECONDS`."""
    give_up_at = time.monotonic() + PARSE_SECONDS
    while time.monotonic() < give_up_at:
        with contextlib.suppress(OSError, DeployError):
            dag: dict[str, Any] = stack.api.get(f"dags/{TRAINING_DAG}")
            if dag["is_paused"] or dag["next_dagrun_run_after"]:
                return dag
        time.sleep(0.5)
    return {}
