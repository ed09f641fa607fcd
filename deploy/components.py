"""The table of components: the command, secrets, networks and volumes of each component.

No component gets more than it needs. The embedded stack starts its processes from this table.
`docker-compose.yml` is written by hand, and its comments give the reasons; tests compare the file
with the table. docs/least-privilege.md shows the table to readers. To add a component, add an entry
here and a service to `docker-compose.yml`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from deploy.places import DEMO_MUSIC, REPOSITORY
from fleet.contract import GPU_LOCKS, Queue, queues

SERVERS, CONTROL, WORKERS = "servers", "control", "workers"
RANKS = (SERVERS, CONTROL, WORKERS)
"""The start order of the embedded stack; the stop order is the reverse."""
HEALTH = ("python", "-m", "fleet.workers.health")
LOGS = frozenset({"logs"})
MUSIC = str(DEMO_MUSIC.relative_to(REPOSITORY))
"""The music folder that is mounted if AUDIO_DIR is not set."""
METADATA = frozenset({"POSTGRES_PASSWORD", "FERNET_KEY"})
"""The secrets of every component that can write to the metadata database. Without the Fernet key
Airflow would store connections, variables and trigger arguments in the database in clear text."""


@dataclass(frozen=True)
class Component:
    """One component of a stack."""

    command: tuple[str, ...]
    """The component's command. `{host}` and `{port}` stand for the address where it listens.
    Empty if the image or docker-compose.yml defines the command."""
    secrets: frozenset[str]
    """The secrets that the component gets, named as in `.env`."""
    networks: frozenset[str]
    """Its networks in the stack of containers."""
    memory: str
    """The memory limit of its container."""
    volumes: frozenset[str] = frozenset()
    """Volumes and folders that its container mounts."""
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Environment variables that only this component gets."""
    health: tuple[str, ...] = ()
    """The command of its container's health check. Empty if the container has no health check, or
    if docker-compose.yml defines one that uses the server's own client."""
    port: int = 0
    """The port of its container that is published on loopback; 0 for none."""
    rank: str = CONTROL
    """Its group in the start order: one of `RANKS`."""
    profile: str = ""
    """The Compose profile that starts the component; empty if it starts without a profile."""
    is_lasting: bool = True
    """Whether the component runs as long as the stack; false if it ends by itself, like `init`."""
    is_embedded: bool = True
    """Whether the embedded stack also has this component."""


def components() -> Mapping[str, Component]:
    """Every component by name: Postgres and Redis first, and a worker for each queue."""
    workers = {f"{queue.name}-worker": _worker(queue) for queue in queues().values()}
    return {**_SERVERS, **_CONTROL, **workers, "flower": _FLOWER, **_OPTIONAL}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SOON = {
    # Celery gives up after this many seconds if Redis accepts a connection but does not answer. By
    # default it waits for ever, and the component's main loop with it.
    f"AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__SOCKET_{name}": "5"
    for name in ("TIMEOUT", "CONNECT_TIMEOUT")
}


def _unacked_keys(user: str) -> dict[str, str]:
    """Give a user of Redis keys of its own for unacknowledged messages.

    kombu keeps the messages under these keys. With keys of its own, the user cannot touch the
    messages of tasks.
    """
    return {
        f"AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__{key.upper()}_KEY": f"{user}.{key}"
        for key in ("unacked", "unacked_index", "unacked_mutex")
    }


def _job(words: str, kind: str, *, volumes: frozenset[str] = LOGS, **more: object) -> Component:
    """Make the component for one of Airflow's long-running jobs."""
    return Component(
        command=("airflow", *words.split()),
        memory="1g",
        volumes=volumes,
        health=(*HEALTH, "job", kind),
        **more,  # type: ignore[arg-type]
    )


def _worker(queue: Queue) -> Component:
    """Make the worker of a queue.

    Only CPU workers can publish. Only GPU workers can start containers.
    """
    is_gpu = queue.resource == "gpu"
    own = GPU_LOCKS if is_gpu else "versions"
    return Component(
        command=("python", "-m", "fleet", "worker", queue.name),
        secrets=_names("REDIS_WORKER_PASSWORD"),
        networks=_names("work docker" if is_gpu else "work"),
        memory="8g" if is_gpu else "4g",
        volumes=_names(f"logs dag-snapshots artifacts {MUSIC} {own}"),
        health=(*HEALTH, "alive"),
        rank=WORKERS,
    )


_SERVERS = {
    "postgres": Component(
        command=(),
        secrets=_names("POSTGRES_SUPERUSER_PASSWORD POSTGRES_PASSWORD"),
        networks=_names("control"),
        memory="1g",
        volumes=_names("postgres postgres-socket"),
        rank=SERVERS,
    ),
    "redis": Component(
        command=(),
        secrets=_names(
            "REDIS_SCHEDULER_PASSWORD REDIS_WORKER_PASSWORD REDIS_FLOWER_PASSWORD "
            "REDIS_HOUSEKEEPER_PASSWORD"
        ),
        networks=_names("control work"),
        memory="512m",
        volumes=_names("redis"),
        rank=SERVERS,
    ),
}
_CONTROL = {
    "init": Component(
        command=("python", "-m", "fleet", "init"),
        secrets=METADATA | {"ADMIN_PASSWORD"},
        networks=_names("control"),
        memory="1g",
        is_lasting=False,
    ),
    "webserver": Component(
        command=("airflow", "api-server", "--host", "{host}", "--port", "{port}"),
        secrets=METADATA | {"JWT_SECRET", "API_SECRET_KEY"},
        networks=_names("control work"),
        memory="2g",
        volumes=LOGS,
        settings={"AIRFLOW__API__WORKERS": "1"},
        health=(*HEALTH, "webserver", "{port}"),
        port=8080,
    ),
    "scheduler": _job(
        "scheduler --skip-serve-logs",
        "SchedulerJob",
        secrets=METADATA | {"JWT_SECRET", "REDIS_SCHEDULER_PASSWORD"},
        networks=_names("control work"),
        settings=_SOON,
    ),
    "dag-processor": _job(
        "dag-processor",
        "DagProcessorJob",
        volumes=LOGS | {"dags", "dag-snapshots", "no-dags"},
        secrets=METADATA,
        networks=_names("control"),
    ),
    "housekeeper": Component(
        command=("python", "-m", "fleet", "housekeeper"),
        secrets=METADATA | {"REDIS_HOUSEKEEPER_PASSWORD"},
        networks=_names("control"),
        memory="512m",
        settings=_unacked_keys("housekeeper") | _SOON,
        health=(*HEALTH, "alive"),
    ),
    "triggerer": _job(
        "triggerer --skip-serve-logs",
        "TriggererJob",
        secrets=METADATA,
        networks=_names("control work"),
    ),
}
_FLOWER = Component(
    command=("python", "-m", "fleet", "flower", "--hostname", "{host}", "--port", "{port}"),
    secrets=_names("REDIS_FLOWER_PASSWORD FLOWER_PASSWORD"),
    networks=_names("work"),
    memory="512m",
    settings={
        **_unacked_keys("flower"),
        # After this many seconds Flower forgets an offline worker, such as one that `make up` has
        # replaced.
        "FLOWER_PURGE_OFFLINE_WORKERS": "300",
    },
    health=(*HEALTH, "http", "{port}", "/healthcheck", "401"),
    port=5555,
)
_OPTIONAL = {
    "s3": Component(
        command=("server", "-s3", "-dir=/data"),
        secrets=_names("S3_SECRET_KEY"),
        networks=_names("work"),
        memory="1g",
        volumes=_names("s3"),
        rank=SERVERS,
        profile="s3",
        is_embedded=False,
    ),
    "bucket": Component(
        command=("python", "-m", "fleet", "bucket"),
        secrets=frozenset(),
        networks=_names("work"),
        memory="512m",
        profile="s3",
        is_lasting=False,
        is_embedded=False,
    ),
    "socket-proxy": Component(
        command=(),
        secrets=frozenset(),
        networks=_names("docker"),
        memory="128m",
        volumes=_names("/var/run/docker.sock"),
        profile="docker",
        is_embedded=False,
    ),
}
