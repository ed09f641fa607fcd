"""The commands of the stack of containers."""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from deploy import demo as demo_run
from deploy import generated
from deploy.containers import checks, env_checks, environment, passwords, rollout
from deploy.containers import stack as compose
from deploy.containers.stack import Project
from deploy.errors import DeployError
from deploy.files import write_private
from deploy.messages import print_addresses, report, tell_schedule
from deploy.places import REPOSITORY
from deploy.running import Stack, ask

CHECK_SECONDS = 120.0
"""How long `up` waits for `fleet_check`. The run takes 10 s, or longer if it has to wait for
trainings that occupy the GPUs."""
Command = TypeVar("Command", bound=Callable[..., Any])

project_option = click.option(
    "--project",
    "name",
    default="music-genre",
    show_default=True,
    help="Name of the Compose project; prefix of its containers, networks and volumes.",
)
env_option = click.option(
    "--env-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=REPOSITORY / ".env",
    help="File with the stack's variables and secrets; see .env.example.",
)


def profile_options(command: Command) -> Command:
    """Add the options that choose which profiles to start."""
    s3 = "Run an S3 service in the stack and use it."
    docker = "Let tasks run in containers; DAG authors can then become root on this machine."
    for name, text in (("docker", docker), ("s3", s3)):
        option = click.option(f"--{name}", "profiles", flag_value=name, multiple=True, help=text)
        command = option(command)
    return command


def _port_option(name: str, server: str) -> Callable[[Command], Command]:
    return click.option(
        f"--{name}-port",
        type=click.IntRange(1, 65535),
        help=f"{server}'s port, to be written into .env; by default .env is left unchanged.",
    )


def writing_env(
    write: Callable[[Project, Sequence[str], Mapping[str, str]], None],
) -> Callable[..., None]:
    """Make a command with the options that set variables in .env: profiles, ports, schedule."""

    @env_option
    @project_option
    @profile_options
    @_port_option("web", "Airflow")
    @_port_option("flower", "Flower")
    @click.option(
        "--daily/--on-demand",
        default=None,
        help="Also train at midnight UTC, or only on demand; by default .env is left unchanged.",
    )
    @functools.wraps(write)
    def command(
        env_file: Path,
        name: str,
        profiles: tuple[str, ...],
        web_port: int | None,
        flower_port: int | None,
        daily: bool | None,
    ) -> None:
        chosen = {"WEB_PORT": web_port, "FLOWER_PORT": flower_port, "DAILY": daily}
        given = {name: str(int(value)) for name, value in chosen.items() if value is not None}
        write(Project(name, env_file), profiles, given)

    return command


@click.command("env")
@writing_env
def write_env(project: Project, profiles: Sequence[str], chosen: Mapping[str, str]) -> None:
    """Write .env with generated secrets; existing values are kept."""
    _write_env(project, profiles, chosen)


def _write_env(project: Project, profiles: Sequence[str], chosen: Mapping[str, str]) -> None:
    path = project.env_file
    drawn = environment.ensure(path, profiles=profiles, chosen=chosen, has_data=project.has_data)
    kept = len(passwords.SECRETS) - len(drawn)
    report(f"{path}: {len(drawn)} secrets generated, {kept} kept")


@click.command("check")
@env_option
@project_option
def check_machine(env_file: Path, name: str) -> None:
    """Check whether this machine can run the stack of containers."""
    _check(Project(name, env_file), (), {})


def _check(project: Project, profiles: Sequence[str], chosen: Mapping[str, str]) -> None:
    """Check the machine, and the files and variables that `up` would use.

    Raises:
        DeployError: a check found a fault.
    """
    with tempfile.TemporaryDirectory() as folder:  # only this user can read the secrets in it
        findings = checks.check(
            functools.partial(_settings_planned, project, profiles, chosen, Path(folder)),
            project.held_ports,
        )
        if (Path(folder) / ".env").exists():
            findings += env_checks.unused(environment.unknown(project.env_file, project.files()))
            findings += env_checks.of_services(
                Project(project.name, Path(folder) / ".env").services("*")
            )
    for finding in findings:
        report(f"{finding.name + ':':<15}{finding.found}")
    if faults := [finding for finding in findings if finding.remedy]:
        listed = "; ".join(f"{each.name}: {each.found} → {each.remedy}" for each in faults)
        raise DeployError(f"this machine cannot run the stack: {listed}")


def _settings_planned(
    project: Project, profiles: Sequence[str], chosen: Mapping[str, str], folder: Path
) -> dict[str, str]:
    """Write to `folder` the `.env` that `up` would write, and return its variables."""
    text, _ = environment.planned(
        project.env_file, profiles=profiles, chosen=chosen, has_data=project.has_data
    )
    write_private(folder / ".env", text)
    return environment.read(folder / ".env")


@click.command()
@writing_env
def up(project: Project, profiles: Sequence[str], chosen: Mapping[str, str]) -> None:
    """Check the machine, write .env, build, start, and run a task on every queue."""
    with project.alone():
        for path in generated.write():
            report(f"{path} was out of date; regenerated from deploy/queues.toml")
        _check(project, profiles, chosen)
        _write_env(project, profiles, chosen)
        report("building the images: this takes minutes the first time, then seconds")
        compose.build(project)
        stack = rollout.start(project)
        _try_every_queue(stack)
    _name_unread_dags(stack)
    passwords = [f"{name} in {project.env_file}" for name in ("ADMIN_PASSWORD", "FLOWER_PASSWORD")]
    print_addresses(stack, *passwords)
    tell_schedule(stack, project.settings().get("DAILY") == "1")


def _name_unread_dags(stack: Stack) -> None:
    """Report which DAG files Airflow could not import, and where to see the reason."""
    found = stack.answer(lambda: stack.api.get("importErrors"))["import_errors"]
    if found:
        files = ", ".join(sorted(str(error["filename"]) for error in found))
        report(f"Airflow could not import {files}; the reason is at the top of Airflow's DAG list")


def _try_every_queue(stack: Stack) -> None:
    """Run `fleet_check`; report its result, or which tasks still wait after `CHECK_SECONDS`."""
    console = Console()
    run = demo_run.trigger(stack, {}, "fleet_check")
    if not demo_run.follow(run, stack, console, CHECK_SECONDS):
        waiting = (
            ", ".join(f"{row.name} is {row.state}" for row in run.rows()) or "the run is queued"
        )
        report(
            f"every queue has a worker, but fleet_check has not ended after {CHECK_SECONDS:.0f} "
            f"s: {waiting}; the queue is busy or the DAG is paused, see {run.logs}"
        )
        return
    demo_run.show_workers(run, console)
    for row in run.rows():
        print(f"{row.queue}: {run.result(row.name)['device_name']}")


@click.command()
@project_option
@click.option("--volumes", is_flag=True, help="Delete the data too: database, models, logs.")
@click.option("--yes", is_flag=True, help="Delete the data without asking.")
def down(name: str, volumes: bool, yes: bool) -> None:
    """Stop and remove the containers; keep their data unless --volumes is given."""
    project = Project(name, Path())
    with project.alone():
        if volumes and not yes:
            _ask_for_deletion(project)
        compose.stop(project, volumes=volumes)


def _ask_for_deletion(project: Project) -> None:
    """List the volumes with their contents, and ask whether to delete them.

    Raises:
        DeployError: the user does not answer yes, or there is no terminal to ask on.
    """
    for volume in project.volumes():
        report(f"{volume:<32}{compose.CONTENTS.get(volume.removeprefix(f'{project.name}_'), '')}")
    with contextlib.suppress(click.Abort):  # raised by Ctrl-C, or without a terminal
        if click.confirm("Delete these volumes?", err=True):
            return
    raise DeployError("nothing was deleted; to delete the data, answer y or use YES=1 (--yes)")


@click.command()
@project_option
def logs(name: str) -> None:
    """Follow the containers' logs."""
    project = Project(name, Path())
    if not project.containers():
        raise DeployError(f"stack {name} is not running; start it with `make up`")
    with contextlib.suppress(KeyboardInterrupt):  # users end the command with Ctrl-C
        project.of_running("logs", "--follow", "--tail", "50")


@click.command()
@env_option
@project_option
def status(env_file: Path, name: str) -> None:
    """Show the containers and whether every queue has a worker."""
    project = Project(name, env_file)
    containers = project.containers()
    if not containers:
        raise DeployError(f"stack {name} is not running; start it with `make up`")
    for each in containers:
        print(f"{each['Service']:<15}{each['Status']}")
    stack = compose.ComposeStack(project)
    stack.check()
    if not ask(stack.is_healthy):
        raise DeployError("the stack is not fully healthy; see the states above and `make logs`")
    print("Airflow is healthy and every queue has a worker")
