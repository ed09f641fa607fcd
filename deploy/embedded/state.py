"""The embedded stack's folder, which keeps its secrets, ports, data and logs."""

import fcntl
import json
import os
import secrets
import shutil
import socket
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.errors import DeployError
from deploy.files import read_env_file, write_private
from fleet.git import fault_of

MIN_FREE_BYTES = 2 * 1024**3
"""The free space that a start requires. A new stack with the demo's artifacts takes about 0.2 GiB;
PostgreSQL needs more space when it recovers after a crash."""


REDIS_USERS = ("scheduler", "worker", "flower", "housekeeper")
_OF_REDIS = tuple(f"redis_{user}_password" for user in REDIS_USERS)
"""The passwords of Redis's users. The secrets file of an older stack lacks some of them, or all."""


@dataclass(frozen=True)
class Secrets:
    """Every secret of a stack, generated once."""

    postgres_password: str
    redis_scheduler_password: str
    redis_worker_password: str
    redis_flower_password: str
    redis_housekeeper_password: str
    admin_password: str
    flower_password: str
    supervisor_password: str
    jwt_secret: str
    api_secret_key: str
    fernet_key: str

    @classmethod
    def generate(cls) -> "Secrets":
        """Generate new secrets from the system's source of randomness."""
        words = {name: secrets.token_urlsafe(24) for name in cls.__dataclass_fields__}
        words["jwt_secret"] = secrets.token_urlsafe(64)  # HS512 requires 64 bytes
        words["fernet_key"] = urlsafe_b64encode(secrets.token_bytes(32)).decode()
        return cls(**words)

    def of(self, name: str) -> str:
        """Return a secret by its name in the `.env` of the Compose stack, such as `JWT_SECRET`."""
        return str(getattr(self, name.lower()))


@dataclass(frozen=True)
class Launch:
    """The settings of one start: ports on loopback, and whether runs start by themselves."""

    web: int
    flower: int
    postgres: int
    redis: int
    supervisor: int
    scheduled: bool
    """Whether schedules and assets start runs."""
    daily: bool = False
    """Whether the training DAG runs every day at midnight UTC."""


class State:
    """The folder of one embedded stack.

    Args:
        folder: its path; `lock` creates the folder with mode 0700 if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.logs = self.folder / "logs"
        self.task_logs = self.logs / "tasks"
        self.artifacts = self.folder / "artifacts"
        self.versions = self.folder / "versions"
        """Contains the Git repository of data and models, and the DVC remote with their bytes."""
        self.airflow_home = self.folder / "airflow"
        self.postgres = self.folder / "postgres"
        self.redis = self.folder / "redis"
        self.secrets_path = self.folder / "secrets.json"
        self.settings_path = self.folder / "airflow.env"
        """The user's own settings, if any; they override the project's."""
        self.supervisor_config = self.folder / "supervisord.conf"
        self.supervisor_pid = self.folder / "supervisord.pid"

    def prepare(self) -> None:
        """Create the stack's subfolders and secrets; the caller must have entered `lock`.

        Raises:
            DeployError: the folder cannot be written, its disk is too full, the secrets of an
                existing database are missing, or the settings of DAG files are wrong.
        """
        self._check_dags()
        try:
            self.folder.chmod(0o700)
            for folder in (self.task_logs, self.artifacts, self.airflow_home, self.redis):
                folder.mkdir(parents=True, exist_ok=True)
            # Airflow would write its defaults and generated keys to a missing airflow.cfg.
            (self.airflow_home / "airflow.cfg").touch(mode=0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        free = shutil.disk_usage(self.folder).free
        if free < MIN_FREE_BYTES:
            raise DeployError(
                f"the disk of {self.folder} has {free / 1024**3:.1f} GiB free, but "
                f"{MIN_FREE_BYTES / 1024**3:.0f} GiB are needed; free some space, or name another "
                "folder with --state"
            )
        if not self.secrets_path.exists():
            if self.postgres.exists():
                raise DeployError(
                    f"{self.secrets_path} is missing, but the database needs its secrets; "
                    f"restore the file, or delete {self.folder} to start from scratch"
                )
            self._save(Secrets.generate())
            return
        kept, new = asdict(self.secrets()), asdict(Secrets.generate())
        in_file = json.loads(self.secrets_path.read_text())
        if missing := [name for name in _OF_REDIS if name not in in_file]:
            self._save(Secrets(**kept | {name: new[name] for name in missing}))

    def _save(self, keys: Secrets) -> None:
        write_private(self.secrets_path, json.dumps(asdict(keys), indent=2))

    def _unwritable(self, error: OSError) -> DeployError:
        return DeployError(
            f"the stack's folder {self.folder} cannot be written: {error.strerror}; "
            "correct its path or permissions, or name another folder with --state"
        )

    def secrets(self) -> Secrets:
        """Read the secrets.

        A password of Redis that the file of an older stack lacks is that stack's only one, or
        empty; `prepare` generates it.

        Raises:
            DeployError: the file is missing or damaged.
        """
        try:
            found = json.loads(self.secrets_path.read_text())
            return Secrets(**dict.fromkeys(_OF_REDIS, found.pop("redis_password", "")) | found)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DeployError(
                f"secrets file {self.secrets_path} cannot be read: {error}; "
                f"restore it, or delete {self.folder} to start from scratch"
            ) from error

    def settings(self) -> dict[str, str]:
        """Read the user's own settings; empty if there are none."""
        return read_env_file(self.settings_path) if self.settings_path.exists() else {}

    def _check_dags(self) -> None:
        """Check the settings that say where the user's own DAGs are."""
        found = self.settings()
        if not (address := found.get("DAGS_GIT", "")):
            return
        if found.get("DAGS_DIR"):
            raise DeployError(
                f"{self.settings_path} sets DAGS_DIR and DAGS_GIT; delete one of the two lines"
            )
        if fault := fault_of(address):
            raise DeployError(f"DAGS_GIT in {self.settings_path}: {'; '.join(fault)}")
        for name, path in found.items():
            if name.startswith("DAGS_GIT_") and name.endswith("_FILE") and not Path(path).is_file():
                raise DeployError(
                    f"{name} in {self.settings_path}: {path} is not a file; write an absolute path"
                )

    def save_launch(self, launch: Launch) -> None:
        """Save a start's settings for the components and for later commands."""
        write_private(self.folder / "launch.json", json.dumps(asdict(launch)))

    def launch(self) -> Launch:
        """Read the settings of the last start.

        Raises:
            DeployError: no stack was started in this folder.
        """
        try:
            return Launch(**json.loads((self.folder / "launch.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DeployError(
                f"no stack was started in {self.folder}; run `make up-local`"
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder, so that only one command at a time uses it; create it if it is missing.

        Raises:
            DeployError: another command has locked the folder, or the folder cannot be created.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("a+")
        except OSError as error:
            raise self._unwritable(error) from error
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise DeployError(
                    f"another demo or start (process {file.read() or 'unknown'}) is using "
                    f"{self.folder}; wait until it ends, or name another folder with --state"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def choose_ports(web: int, flower: int) -> dict[str, int]:
    """Choose the requested ports for the web UIs, and free ports for the other servers.

    A requested port of 0 means any free port.

    Raises:
        DeployError: a requested port is taken.
    """
    asked = {"web": web, "flower": flower, "postgres": 0, "redis": 0, "supervisor": 0}
    held: list[socket.socket] = []
    try:
        for name, port in asked.items():
            held.append(_bind(name, port))
        return dict(zip(asked, (each.getsockname()[1] for each in held), strict=True))
    finally:
        for each in held:
            each.close()


def _bind(name: str, port: int) -> socket.socket:
    listener = socket.socket()
    # The servers set SO_REUSEADDR too. Without it, a port that was just closed would look taken.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise DeployError(
            f"port {port} for {name} is taken: {error.strerror}; stop the program that uses it, or "
            f"choose another with --{name}-port (make: {name.upper()}_PORT=…)"
        ) from error
    return listener
