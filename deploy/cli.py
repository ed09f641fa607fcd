"""`python -m deploy`: bring a stack up on this machine, use it, take it down."""

import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from deploy import demo as demo_run
from deploy import local, supervisor
from deploy.components import ADMIN, REPOSITORY
from deploy.errors import DeployError
from deploy.state import State

DEMO_PARAMETERS = {
    "model": "shufflenet_v2_x0_5",
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "epochs": 10,
    "seed": 0,
}
"""What fits into a minute on two cores; measured in docs/decisions/0005-demo-recipe.md."""

PORT = click.IntRange(0, 65535)
state_option = click.option(
    "--state",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=REPOSITORY / ".local-stack",
    help="Folder of the embedded stack: all its data, secrets and logs.",
)
web_port_option = click.option(
    "--web-port",
    type=PORT,
    default=8080,
    show_default=True,
    help="Airflow's port on loopback; 0: a free one.",
)
flower_port_option = click.option(
    "--flower-port",
    type=PORT,
    default=5555,
    show_default=True,
    help="Flower's port; 0: a free one.",
)


class _Commands(click.Group):
    """Turns faults into one line and exit 1, an interruption into exit 130."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except DeployError as error:
            print(f"error: {error}", file=sys.stderr)
            ctx.exit(1)
        except OSError as error:
            where = error.filename or "this machine"
            print(f"error: {where}: {error.strerror or error}", file=sys.stderr)
            ctx.exit(1)
        except KeyboardInterrupt:
            print("interrupted; all that was started has been stopped", file=sys.stderr)
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Bring a stack up on this machine, use it, take it down."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@main.command()
@state_option
@web_port_option
@flower_port_option
def demo(folder: Path, web_port: int, flower_port: int) -> None:
    """Start the embedded stack, train on the demo music, show the result, stop it all."""
    began = time.monotonic()
    console, state = Console(), State(folder)
    with state.lock():
        state.prepare()
        stack = local.start(state, web_port, flower_port, _report, is_leashed=True)
        try:
            _print_addresses(stack, console)
            _report(f"running {demo_run.DAG_ID} on the demo music")
            run = demo_run.TrainingRun(stack, DEMO_PARAMETERS)
            demo_run.follow(run, stack, console)
            demo_run.summarise(run, console)
        finally:
            local.stop(state, _report)
    _report(f"demo done in {time.monotonic() - began:.0f} s; `make up-local` starts it to stay")


@main.command("up-local")
@state_option
@web_port_option
@flower_port_option
def up_local(folder: Path, web_port: int, flower_port: int) -> None:
    """Start the embedded stack and leave it running."""
    state = State(folder)
    with state.lock():
        state.prepare()
        stack = local.start(state, web_port, flower_port, _report, is_leashed=False)
    _print_addresses(stack, Console())
    _report("stop it with `make down-local`")


@main.command("down-local")
@state_option
def down_local(folder: Path) -> None:
    """Stop the embedded stack; its data stay."""
    state = State(folder)
    if local.stop(state, _report):
        return
    with state.lock():  # refuses while a demo or a start is still at it
        _report(f"no stack runs in {state.folder}")


@main.command("status-local")
@state_option
def status_local(folder: Path) -> None:
    """Show the embedded stack's processes and which queues have a worker."""
    state = State(folder)
    if supervisor.supervisord_process(state) is None:
        raise DeployError(f"no stack runs in {state.folder}; start one with `make up-local`")
    stack = local.LocalStack(state)
    for process in stack.supervisor.processes():
        print(f"{process.name:<15}{process.state:<10}process {process.pid}")
    _print_addresses(stack, Console())
    if not local.ask(stack.is_healthy):
        raise DeployError(
            f"not all of it is well: see the states above and the logs in {state.logs}; "
            "a stack that was just started or is busy may need some seconds"
        )
    print("Airflow is healthy and every queue has a worker")


@main.command(hidden=True)
@state_option
def supervise(folder: Path) -> None:
    """Become the stack's process manager."""
    supervisor.exec_supervisord(State(folder))


@main.command(hidden=True)
@state_option
@click.argument("component")
def run(folder: Path, component: str) -> None:
    """Become one component of the stack."""
    supervisor.exec_component(State(folder), component)


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_addresses(stack: local.LocalStack, console: Console) -> None:
    secrets = stack.state.secrets_path
    lines = {
        "Airflow": f"{stack.web_address}  (user {ADMIN}, admin_password in {secrets})",
        "Flower": f"{stack.flower_address}  (user {ADMIN}, flower_password in {secrets})",
        "logs": str(stack.state.logs),
    }
    demo_run.print_lines(lines, console)
