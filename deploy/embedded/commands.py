"""The commands of the embedded stack, which runs as plain processes without Docker."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from deploy import demo as demo_run
from deploy.embedded import stack as embedded
from deploy.embedded import supervisor
from deploy.embedded.processes import airflow_command
from deploy.embedded.state import State
from deploy.errors import DeployError
from deploy.messages import print_addresses, report, tell_schedule
from deploy.places import PORTS, REPOSITORY, TRAINING_DAG
from deploy.running import ask

DEMO_PARAMETERS = {
    "model": "shufflenet_v2_x0_5",
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "epochs": 10,
    "seed": 0,
}
"""With these parameters a training takes less than a minute on two cores. Measurements:
docs/decisions/0005-demo-recipe.md."""

Command = TypeVar("Command", bound=Callable[..., Any])
state_option = click.option(
    "--state",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=REPOSITORY / ".local-stack",
    help="Folder of the embedded stack: all its data, secrets and logs.",
)


def _port_option(name: str, server: str, default: int) -> Callable[[Command], Command]:
    return click.option(
        f"--{name}-port",
        type=click.IntRange(0, 65535),
        default=default,
        show_default=True,
        help=f"{server}'s port on loopback; 0: any free port.",
    )


web_port_option = _port_option("web", "Airflow", PORTS["WEB_PORT"])
flower_port_option = _port_option("flower", "Flower", PORTS["FLOWER_PORT"])


@click.command()
@state_option
@web_port_option
@flower_port_option
def demo(folder: Path, web_port: int, flower_port: int) -> None:
    """Start the embedded stack, train on the demo music, show the result, stop the stack."""
    began = time.monotonic()
    console, state = Console(), State(folder)
    with state.lock():
        state.prepare()
        stack = embedded.start(state, (web_port, flower_port), report, is_leashed=True)
        try:
            _print_local_addresses(stack)
            run = _demo_run(stack)
            demo_run.follow(run, stack, console)
            demo_run.summarise(run, console)
        finally:
            embedded.stop(state, report)
    report(
        f"demo done in {time.monotonic() - began:.0f} s; "
        "`make up-local` starts the stack and leaves it running"
    )


def _demo_run(stack: embedded.LocalStack) -> demo_run.Run:
    if run := demo_run.unfinished(stack, DEMO_PARAMETERS):
        report(f"continuing the interrupted run of {TRAINING_DAG}")
        return run
    report(f"running {TRAINING_DAG} on the demo music")
    return demo_run.trigger(stack, DEMO_PARAMETERS)


@click.command("up-local")
@state_option
@web_port_option
@flower_port_option
@click.option("--daily", is_flag=True, help="Also train at midnight UTC every day.")
def up_local(folder: Path, web_port: int, flower_port: int, daily: bool) -> None:
    """Start the embedded stack and leave it running."""
    state = State(folder)
    with state.lock():
        state.prepare()
        stack = embedded.start(state, (web_port, flower_port), report, daily=daily)
    _print_local_addresses(stack)
    tell_schedule(stack, daily)
    report("stop the stack with `make down-local`")


@click.command("down-local")
@state_option
def down_local(folder: Path) -> None:
    """Stop the embedded stack and keep its data."""
    state = State(folder)
    if embedded.stop(state, report):
        report("unfinished runs continue at the next `make up-local`")
        return
    with state.lock():  # raises an error while a demo or a start is in progress
        report(f"no stack is running in {state.folder}")


@click.command("status-local")
@state_option
def status_local(folder: Path) -> None:
    """Show the embedded stack's processes and whether every queue has a worker."""
    state = State(folder)
    if supervisor.supervisord_process(state) is None:
        raise DeployError(f"no stack is running in {state.folder}; start one with `make up-local`")
    stack = embedded.LocalStack(state)
    for process in stack.supervisor.processes():
        print(f"{process.name:<15}{process.state:<10}process {process.pid}")
    _print_local_addresses(stack)
    if not ask(stack.is_healthy):
        raise DeployError(
            f"the stack is not fully healthy; see the states above and the logs in {state.logs}; "
            "a stack that was just started or is busy may need some seconds"
        )
    print("Airflow is healthy and every queue has a worker")


@click.command(
    "airflow",
    context_settings={
        "ignore_unknown_options": True,
        # All options after the first word belong to Airflow, even --state and --help.
        "allow_interspersed_args": False,
        "help_option_names": ["-h"],
    },
)
@state_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def airflow(folder: Path, words: tuple[str, ...]) -> None:
    """Run an Airflow command on the embedded stack, such as `airflow dags test fleet_check`."""
    state = State(folder)
    if supervisor.supervisord_process(state) is None:
        raise DeployError(f"no stack is running in {state.folder}; start one with `make up-local`")
    command, environment = airflow_command(state, words)
    os.execve(command[0], command, environment)


@click.command(hidden=True)
@state_option
def supervise(folder: Path) -> None:
    """Become the stack's process manager."""
    supervisor.exec_supervisord(State(folder))


@click.command(hidden=True)
@state_option
@click.argument("component")
def run(folder: Path, component: str) -> None:
    """Become one component of the stack."""
    supervisor.exec_component(State(folder), component)


def _print_local_addresses(stack: embedded.LocalStack) -> None:
    secrets = stack.state.secrets_path
    print_addresses(stack, f"admin_password in {secrets}", f"flower_password in {secrets}")
