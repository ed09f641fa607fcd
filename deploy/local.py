"""The embedded stack: the distributed Airflow as plain processes on loopback, in one folder."""

import hashlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TypeVar

from deploy import supervisor
from deploy.airflow_api import AirflowApi, online_workers
from deploy.components import (
    ADMIN,
    REPOSITORY,
    base_environment,
    init_command,
    leashed,
    postgres_program,
    write_redis_config,
)
from deploy.errors import DeployError
from deploy.state import Launch, State, choose_launch
from fleet.contract import queues

START_SECONDS = 180.0
"""The slowest start seen on two busy cores took a third of it."""
Report = Callable[[str], None]
T = TypeVar("T")


class LocalStack:
    """A started embedded stack."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.launch = state.launch()
        self.web_address = f"http://127.0.0.1:{self.launch.web}"
        self.flower_address = f"http://127.0.0.1:{self.launch.flower}"
        self.supervisor = supervisor.Supervisor(state)
        self.api = AirflowApi(self.web_address, ADMIN, state.secrets().admin_password)

    def wait_until(self, is_ready: Callable[[], bool], what: str) -> None:
        """Poll until ready.

        Raises:
            DeployError: a component does not stay up, or `START_SECONDS` have passed.
        """
        give_up_at = time.monotonic() + START_SECONDS
        while not ask(is_ready):
            self.supervisor.check()
            if time.monotonic() > give_up_at:
                raise DeployError(
                    f"{what} not ready after {START_SECONDS:.0f} s; see the logs in "
                    f"{self.state.logs}; a busy machine may need another try"
                )
            time.sleep(0.3)

    def answer(self, ask: Callable[[], T]) -> T:
        """Ask the api-server, and again while it is being started anew.

        Raises:
            DeployError: refused, a component does not stay up, or `START_SECONDS` have passed.
        """
        give_up_at = time.monotonic() + START_SECONDS
        while True:
            try:
                return ask()
            except OSError as error:
                self.supervisor.check()
                if time.monotonic() > give_up_at:
                    raise DeployError(
                        f"Airflow at {self.web_address} has not answered for {START_SECONDS:.0f} s "
                        f"({error}); see {supervisor.log_path(self.state, 'webserver')}"
                    ) from error
                time.sleep(0.5)

    def is_healthy(self) -> bool:
        """Whether Airflow's four components beat and a worker serves each queue."""
        self.api.warm_up()
        health = self.api.health()
        names = ("metadatabase", "scheduler", "dag_processor", "triggerer")
        return all(health.get(name) == "healthy" for name in names) and not self.missing_workers()

    def missing_workers(self) -> set[str]:
        """The queues of the contract whose worker is not online."""
        password = self.state.secrets().flower_password
        online = online_workers(self.flower_address, ADMIN, password)
        return set(queues()) - {name.partition("@")[0] for name in online}


def start(
    state: State, web_port: int, flower_port: int, report: Report, is_leashed: bool
) -> LocalStack:
    """Bring the stack up in its folder, from nothing or from what a former start left.

    Args:
        is_leashed: the stack ends when this process does, and DAGs run on demand alone, so that a
            run that fell due since the last start does not come between.

    Raises:
        DeployError: it runs already, a port is taken, the disk is full or a component dies.
    """
    if running := supervisor.supervisord_process(state):
        raise DeployError(
            f"a stack runs already in {state.folder} (process {running.pid}); "
            "stop it with `make down-local`, or name another folder with --state"
        )
    state.save_launch(choose_launch(web_port, flower_port, scheduled=not is_leashed))
    _ensure_database(state, report)
    write_redis_config(state)
    supervisor.write_config(state)
    try:
        _launch(state, is_leashed)
        return _bring_up(state, report)
    except BaseException:
        stop(state, report)
        raise


def _bring_up(state: State, report: Report) -> LocalStack:
    stack = LocalStack(state)
    stack.wait_until(lambda: _listens(stack.launch), "PostgreSQL and Redis were")
    _ensure_schema(state, report)
    report("starting webserver, scheduler, dag-processor, triggerer, workers and Flower")
    stack.supervisor.start_all()
    stack.wait_until(stack.is_healthy, "the stack was")
    return stack


def stop(state: State, report: Report) -> bool:
    """Stop the stack; say whether one ran. Not to be interrupted: half a stop helps nobody."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    if supervisor.supervisord_process(state) is None:
        return False
    report("stopping the stack")
    killed = supervisor.stop_supervisord(state)
    if killed:
        report(f"killed {len(killed)} processes that outlived the stop")
    return True


def _ensure_database(state: State, report: Report) -> None:
    """Make PostgreSQL's data folder once; a killed attempt leaves nothing under its name."""
    if state.postgres.exists():
        return
    report("making the database")
    new = state.postgres.with_name("postgres.new")
    shutil.rmtree(new, ignore_errors=True)
    with tempfile.NamedTemporaryFile("w", dir=state.folder) as password_file:
        password_file.write(state.secrets().postgres_password)
        password_file.flush()
        options = ["-U", "airflow", "--auth=scram-sha-256", f"--pwfile={password_file.name}"]
        locale = ["--encoding=UTF8", "--locale=C.UTF-8"]
        command = [*postgres_program("initdb"), "-D", str(new), *options, *locale]
        _run_once(command, base_environment(), state, "initdb")
    new.rename(state.postgres)


def _ensure_schema(state: State, report: Report) -> None:
    """Migrate and create the admin once for each set of Airflow packages."""
    marker = state.folder / "schema-of"
    lock_file = REPOSITORY / "requirements" / "airflow.txt"
    wanted = hashlib.sha256(lock_file.read_bytes()).hexdigest()
    if marker.exists() and marker.read_text() == wanted:
        return
    report("migrating the metadata database and creating the admin user")
    command, environment = init_command(state)
    _run_once(command, environment, state, "init")
    marker.write_text(wanted)


def _run_once(command: list[str], environment: dict[str, str], state: State, name: str) -> None:
    path = supervisor.log_path(state, name)
    with path.open("w") as log:
        result = subprocess.run(
            leashed(command, "KILL"),
            env=environment,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    if result.returncode != 0:
        raise DeployError(
            f"{name} ended with exit status {result.returncode}; its last words: "
            f"{supervisor.last_line(path)!r}; the rest is in {path}"
        )


def _launch(state: State, is_leashed: bool) -> None:
    """Start supervisord in a session of its own, so that only we pass it a terminal's signals."""
    command = [sys.executable, "-m", "deploy", "supervise", "--state", str(state.folder)]
    if is_leashed:
        command = leashed(command, "TERM")
    path = supervisor.log_path(state, "supervisord")
    with path.open("a") as log:
        manager = subprocess.Popen(
            command,
            env=base_environment(),
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        remote = supervisor.Supervisor(state)
        while not remote.answers():
            if manager.poll() is not None:
                raise DeployError(
                    f"the process manager ended with exit status {manager.returncode}; "
                    f"its last words: {supervisor.last_line(path)!r}; the rest is in {path}"
                )
            time.sleep(0.1)
    except BaseException:
        manager.terminate()
        manager.wait()
        raise


def _listens(launch: Launch) -> bool:
    for port in (launch.postgres, launch.redis):
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            pass
    return True


def ask(is_ready: Callable[[], bool]) -> bool:
    """Whether it is ready; what cannot be asked is not."""
    try:
        return is_ready()
    except (OSError, ValueError, DeployError):
        return False  # not up yet; `wait_until` knows when to give up
