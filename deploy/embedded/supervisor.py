"""Supervisord, the process manager of the embedded stack: its configuration and its remote control.

Supervisord restarts processes that die, rotates their logs, and stops groups of processes in order.
"""

import contextlib
import http.client
import os
import signal
import sys
import time
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.components import CONTROL, RANKS, SERVERS
from deploy.embedded.processes import Program, base_environment, leashed, programs
from deploy.embedded.state import State
from deploy.errors import DeployError
from deploy.files import write_private
from deploy.places import REPOSITORY
from fleet.kernel import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl

MAX_STARTS = 3
"""How many starts a component gets during one command of `python -m deploy` before the command
fails."""


@dataclass
class Process:
    """One component as supervisord sees it."""

    name: str
    state: str
    """STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL or UNKNOWN."""
    pid: int
    started_at: float


def write_config(state: State) -> None:
    """Write supervisord's configuration; the components of one rank form one group.

    Supervisord stops the groups one after the other, from the highest priority number down, and
    the members of a group in parallel. So workers stop while the api-server still accepts their
    last reports, and PostgreSQL and Redis stop last.
    """
    listed = programs(state).values()
    groups = {
        f"group:{rank}": {
            "programs": ",".join(each.name for each in listed if each.rank == rank),
            "priority": priority,
        }
        for priority, rank in enumerate(RANKS, start=1)
    }
    sections: dict[str, dict[str, object]] = {
        "supervisord": {
            "nodaemon": "true",
            "silent": "true",
            "logfile": state.logs / "supervisord.log",
            "pidfile": state.supervisor_pid,
            "childlogdir": state.logs,
        },
        "inet_http_server": {
            "port": f"127.0.0.1:{state.launch().supervisor}",
            "username": "supervisor",
            "password": state.secrets().supervisor_password,
        },
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        },
        **{f"program:{program.name}": _program(program, state) for program in listed},
        **groups,
    }
    text = "".join(
        f"[{title}]\n" + "".join(f"{name}={_escape(value)}\n" for name, value in lines.items())
        for title, lines in sections.items()
    )
    write_private(state.supervisor_config, text)


def _program(program: Program, state: State) -> dict[str, object]:
    command = f'"{sys.executable}" -m deploy run --state "{state.folder}" {program.name}'
    return {
        "command": command,
        "directory": REPOSITORY,
        "autostart": "true" if program.rank == SERVERS else "false",
        "autorestart": "true",
        "startsecs": 1 if program.rank == SERVERS else 5,
        "startretries": MAX_STARTS - 1,
        "stopsignal": program.stop_signal,
        "stopwaitsecs": program.stop_seconds,
        # A stopping worker must signal its tasks itself, so supervisord signals only the worker.
        "stopasgroup": "true" if program.rank == CONTROL else "false",
        "killasgroup": "false" if program.rank == SERVERS else "true",
        "redirect_stderr": "true",
        "stdout_logfile": log_path(state, program.name),
        "stdout_logfile_maxbytes": "20MB",
        "stdout_logfile_backups": 2,
        "priority": 1,
    }


def _escape(value: object) -> str:
    return str(value).replace("%", "%%")


def log_path(state: State, component: str) -> Path:
    """The log file of a component's output."""
    return state.logs / f"{component}.log"


def exec_supervisord(state: State) -> None:
    """Replace this process with supervisord, as the child subreaper of the stack.

    Orphaned processes of the stack become children of supervisord, so a stop finds them.
    """
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    words = [sys.executable, "-m", "supervisor.supervisord", "-c", str(state.supervisor_config)]
    os.execve(words[0], words, base_environment())


def exec_component(state: State, name: str) -> None:
    """Replace this process with a component, which the kernel signals when supervisord dies.

    Raises:
        DeployError: supervisord died before the parent-death signal was set.
    """
    program = programs(state)[name]
    prctl(PR_SET_PDEATHSIG, getattr(signal, f"SIG{program.death_signal}"))
    if str(os.getppid()) != state.supervisor_pid.read_text().strip():
        raise DeployError(
            f"{name} was not started by a running process manager; run `make up-local`"
        )
    words = leashed(program.command, program.death_signal)
    os.execvpe(words[0], words, dict(program.environment))


def supervisord_process(state: State) -> psutil.Process | None:
    """The supervisord process of this folder's stack; None if the stack does not run."""
    try:
        process = psutil.Process(int(state.supervisor_pid.read_text()))
        runs = process.status() != psutil.STATUS_ZOMBIE
        return process if runs and str(state.supervisor_config) in process.cmdline() else None
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None


class Supervisor:
    """Remote control of a running supervisord."""

    def __init__(self, state: State) -> None:
        login = f"supervisor:{state.secrets().supervisor_password}"
        self._address = f"http://{login}@127.0.0.1:{state.launch().supervisor}/RPC2"
        self._state = state
        self._starts: dict[str, set[float]] = {}

    def answers(self) -> bool:
        """Whether supervisord is ready for commands."""
        try:
            return bool(self._call("getState")["statename"] == "RUNNING")
        except DeployError:
            return False

    def start_all(self) -> None:
        """Start all components that do not run yet, without waiting for them.

        Raises:
            DeployError: supervisord does not answer.
        """
        for rank in RANKS[1:]:
            self._call("startProcessGroup", rank, False)

    def processes(self) -> list[Process]:
        """The current state of every component.

        Raises:
            DeployError: supervisord does not answer.
        """
        infos = self._call("getAllProcessInfo")
        return [
            Process(info["name"], info["statename"], info["pid"], info["start"]) for info in infos
        ]

    def _call(self, method: str, *arguments: object) -> Any:
        try:
            with xmlrpc.client.ServerProxy(self._address) as server:
                return getattr(server.supervisor, method)(*arguments)
        except (OSError, xmlrpc.client.Error, http.client.HTTPException) as error:
            raise DeployError(
                f"the process manager of {self._state.folder} does not answer ({error}); "
                f"see {log_path(self._state, 'supervisord')}, then start the stack again"
            ) from error

    def check(self) -> None:
        """Check that every component stays up.

        Raises:
            DeployError: supervisord gave a component up, or a component keeps restarting.
        """
        for process in self.processes():
            starts = self._starts.setdefault(process.name, set())
            if process.started_at:
                starts.add(process.started_at)
            if process.state == "FATAL" or len(starts) > MAX_STARTS:
                path = log_path(self._state, process.name)
                raise DeployError(
                    f"{process.name} does not stay up after {max(len(starts), MAX_STARTS)} starts; "
                    f"its last line: {last_line(path)!r}; its full log is {path}"
                )


def stop_supervisord(state: State, seconds: float = 60.0) -> list[psutil.Process]:
    """Stop the stack in order, then kill every process of the stack that still runs.

    Returns:
        The killed processes.
    """
    process = supervisord_process(state)
    if process is None:
        return []
    family: set[psutil.Process] = set()
    process.send_signal(signal.SIGTERM)
    give_up_at = time.monotonic() + seconds
    while _runs(process) and time.monotonic() < give_up_at:
        family.update(_children(process))
        time.sleep(0.1)
    survivors = [each for each in (process, *family) if _runs(each)]
    for survivor in survivors:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    psutil.wait_procs(survivors, timeout=5)
    state.supervisor_pid.unlink(missing_ok=True)
    return survivors


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def last_line(path: Path) -> str:
    """The last non-blank line of a log; empty if there is none."""
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
