"""`python -m deploy`: bring a stack up on this machine, use it, take it down."""

import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from deploy import checks, compose, environment, local, supervisor
from deploy import demo as demo_run
from deploy.components import ADMIN, REPOSITORY
from deploy.compose import Project
from deploy.errors import DeployError
from deploy.stack import Stack, ask
from deploy.state import State
from fleet import contract

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
            _print_local_addresses(stack)
            run = _demo_run(stack)
            demo_run.follow(run, stack, console)
            demo_run.summarise(run, console)
        finally:
            local.stop(state, _report)
    _report(f"demo done in {time.monotonic() - began:.0f} s; `make up-local` starts it to stay")


def _demo_run(stack: local.LocalStack) -> demo_run.Run:
    if run := demo_run.unfinished(stack, DEMO_PARAMETERS):
        _report(f"going on with the run of {demo_run.DAG_ID} that was interrupted")
        return run
    _report(f"running {demo_run.DAG_ID} on the demo music")
    return demo_run.trigger(stack, DEMO_PARAMETERS)


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
    _print_local_addresses(stack)
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
    _print_local_addresses(stack)
    if not ask(stack.is_healthy):
        raise DeployError(
            f"not all of it is well: see the states above and the logs in {state.logs}; "
            "a stack that was just started or is busy may need some seconds"
        )
    print("Airflow is healthy and every queue has a worker")


project_option = click.option(
    "--project",
    "name",
    default="music-genre",
    show_default=True,
    help="Name of the Compose project: of its containers, networks and volumes.",
)
env_option = click.option(
    "--env-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=REPOSITORY / ".env",
    help="The stack's variables and secrets; see .env.example.",
)


s3_option = click.option(
    "--s3", is_flag=True, help="Have the stack run an S3 service of its own and use it."
)


@main.command("env")
@env_option
@s3_option
def write_env(env_file: Path, s3: bool) -> None:
    """Write .env with generated secrets; what is there stays."""
    generated = environment.ensure(env_file, local_s3=s3)
    _report(f"{env_file}: {len(generated)} secrets generated, the others kept")


@main.command("check")
@env_option
@project_option
def check_machine(env_file: Path, name: str) -> None:
    """See whether this machine can run the stack of containers."""
    settings = environment.read(env_file) if env_file.exists() else {}
    running = any(each["State"] == "running" for each in Project(name, env_file).containers())
    findings = checks.check(settings, running=running)
    for finding in findings:
        _report(f"{finding.name + ':':<15}{finding.found}")
    if faults := [finding for finding in findings if finding.remedy]:
        listed = "; ".join(f"{each.name}: {each.found} → {each.remedy}" for each in faults)
        raise DeployError(f"this machine cannot run the stack: {listed}")


@main.command()
@env_option
@project_option
@s3_option
@click.pass_context
def up(context: click.Context, env_file: Path, name: str, s3: bool) -> None:
    """Check, write .env, build, start, and run a task on every queue."""
    context.invoke(check_machine, env_file=env_file, name=name)
    context.invoke(write_env, env_file=env_file, s3=s3)
    project, console = Project(name, env_file), Console()
    _report("building the images: minutes at the first time, then seconds")
    compose.build(project)
    stack = compose.start(project)
    run = demo_run.trigger(stack, {}, "fleet_check")
    demo_run.follow(run, stack, console)
    demo_run.show_workers(run, console)
    for row in run.rows():
        task = row.name
        print(f"{row.queue}: {run.result(task)['device_name']}")
    _print_addresses(stack, f"ADMIN_PASSWORD in {env_file}", f"FLOWER_PASSWORD in {env_file}")


@main.command()
@project_option
@click.option("--volumes", is_flag=True, help="Delete the data too: database, models, logs.")
def down(name: str, volumes: bool) -> None:
    """Stop and remove the containers; their data stay."""
    compose.stop(Project(name, Path()), volumes=volumes)


@main.command()
@project_option
def logs(name: str) -> None:
    """Follow the containers' logs."""
    Project(name, Path()).of_running("logs", "--follow", "--tail", "50")


@main.command()
@env_option
@project_option
def status(env_file: Path, name: str) -> None:
    """Show the containers and whether every queue has a worker."""
    project = Project(name, env_file)
    containers = project.containers()
    if not containers:
        raise DeployError(f"no stack {name} runs; start it with `make up`")
    for each in containers:
        print(f"{each['Service']:<15}{each['Status']}")
    stack = compose.ComposeStack(project)
    stack.check()
    if not ask(stack.is_healthy):
        raise DeployError("not all of it is well: see the states above and `make logs`")
    print("Airflow is healthy and every queue has a worker")


@main.command(hidden=True)
def settings() -> None:
    """Print the settings that follow from the queue contract: what deploy/queues.env holds."""
    print(contract.queues_env(), end="")


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


def _print_addresses(stack: Stack, admin_password: str, flower_password: str) -> None:
    """Print where to look, and where the passwords are."""
    lines = {
        "Airflow": f"{stack.web_address}  (user {ADMIN}, {admin_password})",
        "Flower": f"{stack.flower_address}  (user {ADMIN}, {flower_password})",
        "logs": stack.logs,
    }
    demo_run.print_lines(lines, Console())


def _print_local_addresses(stack: local.LocalStack) -> None:
    secrets = stack.state.secrets_path
    _print_addresses(stack, f"admin_password in {secrets}", f"flower_password in {secrets}")
