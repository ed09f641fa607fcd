"""Start and stop the embedded stack: Airflow and its servers as plain processes on loopback."""

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from deploy.embedded import supervisor
from deploy.embedded.processes import (
    base_environment,
    init_command,
    leashed,
    postgres_program,
    write_redis_config,
)
from deploy.embedded.state import Launch, State, choose_ports
from deploy.errors import DeployError
from deploy.places import REPOSITORY
from deploy.running import Stack

Report = Callable[[str], None]


class LocalStack(Stack):
    """A started embedded stack."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.launch = state.launch()
        self.supervisor = supervisor.Supervisor(state)
        keys = state.secrets()
        base_url = state.settings().get("AIRFLOW__API__BASE_URL", "")
        passwords = (keys.admin_password, keys.flower_password)
        super().__init__(self.launch.web, self.launch.flower, *passwords, base_url)
        self.logs = str(state.logs)

    def check(self) -> None:
        """Check that each component stays up.

        Raises:
            DeployError: a component does not stay up.
        """
        self.supervisor.check()

    def logs_of(self, dag_id: str, run_id: str) -> str:
        """The folder of a run's task logs."""
        return str(self.state.task_logs / f"dag_id={dag_id}" / f"run_id={run_id}")


def start(
    state: State,
    ports: tuple[int, int],
    report: Report,
    *,
    is_leashed: bool = False,
    daily: bool = False,
) -> LocalStack:
    """Start the stack in its folder, which can contain the data of an earlier start.

    Args:
        ports: the ports of Airflow and Flower.
        is_leashed: whether the stack ends when this process ends. If so, DAGs run only on demand:
            schedules and assets start no runs.
        daily: whether the training DAG also runs every day at midnight UTC.

    Raises:
        DeployError: the stack runs already, a port is taken, the disk is full or a component dies.
    """
    if running := supervisor.supervisord_process(state):
        raise DeployError(
            f"a stack is already running in {state.folder} (process {running.pid}); "
            "stop it with `make down-local`, or name another folder with --state"
        )
    chosen = choose_ports(*ports)
    state.save_launch(Launch(**chosen, scheduled=not is_leashed, daily=daily))
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
    stack.wait_until(lambda: servers_answer(state), "PostgreSQL and Redis were")
    _ensure_schema(state, report)
    report(
        "starting webserver, scheduler, dag-processor, triggerer, housekeeper, workers and Flower"
    )
    stack.supervisor.start_all()
    stack.wait_until(stack.is_healthy, "the stack was")
    return stack


def stop(state: State, report: Report) -> bool:
    """Stop the stack if it runs; returns whether it ran.

    From now on this process ignores SIGINT, SIGTERM and SIGHUP, so that nothing interrupts the
    stop.
    """
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    if supervisor.supervisord_process(state) is None:
        return False
    report("stopping the stack")
    killed = supervisor.stop_supervisord(state)
    if killed:
        report(f"killed {len(killed)} processes that did not stop in time")
    return True


def _ensure_database(state: State, report: Report) -> None:
    """Create PostgreSQL's data folder if it is missing.

    The folder is created under another name and then renamed. So the data folder is complete or
    missing, even if this process is killed.
    """
    if state.postgres.exists():
        return
    report("creating the database")
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
    report("preparing the metadata database and the admin user")
    command, environment = init_command(state)
    _run_once(command, environment, state, "init")


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
            f"{name} ended with exit status {result.returncode}; its last line: "
            f"{supervisor.last_line(path)!r}; its full log is {path}"
        )


def _launch(state: State, is_leashed: bool) -> None:
    """Start supervisord and wait until it answers.

    Supervisord runs in its own session, so signals from the terminal, such as Ctrl-C, reach only
    this process.
    """
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
                    f"its last line: {supervisor.last_line(path)!r}; its full log is {path}"
                )
            time.sleep(0.1)
    except BaseException:
        manager.terminate()
        manager.wait()
        raise


def servers_answer(state: State) -> bool:
    """Whether PostgreSQL and Redis accept clients.

    An open port is not enough: while a server recovers data, it listens but refuses clients.

    Raises:
        OSError: Redis does not listen yet.
    """
    return _postgres_answers(state.launch()) and _redis_answers(state)


def _postgres_answers(launch: Launch) -> bool:
    where = ["--host", "127.0.0.1", "--port", str(launch.postgres)]
    words = [*postgres_program("pg_isready"), "--quiet", *where]
    return subprocess.run(words, env=base_environment()).returncode == 0


def _redis_answers(state: State) -> bool:
    address = ("127.0.0.1", state.launch().redis)
    with socket.create_connection(address, timeout=1) as connection:
        login = f"worker {state.secrets().redis_worker_password}"
        connection.sendall(f"AUTH {login}\r\nPING\r\n".encode())
        with connection.makefile() as answers:
            return [answers.readline().strip() for _ in range(2)] == ["+OK", "+PONG"]
