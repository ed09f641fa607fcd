"""The containers of the Docker way: names, settings, logs, and checks of their state."""

import contextlib
import hashlib
import json
import os
import re
import struct
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from airflow.sdk.exceptions import AirflowFailException
from docker.errors import APIError, NotFound  # type: ignore[import-untyped]
from docker.types import DeviceRequest  # type: ignore[import-untyped]
from requests import RequestException
from urllib3.exceptions import HTTPError

from fleet.contract import STACK_LABEL, VISIBLE_VARIABLE
from fleet.operators.process import TERM_GRACE_SECONDS, Lines, LineSink

ENGINE_AWAY_SECONDS = 120.0
"""How long to wait while the Docker engine does not answer, for example while it restarts. Then the
try fails."""
LOOK_AGAIN_SECONDS = 1.0
EXIT_REMOVED = 137
"""Exit status reported for a container that was removed while it ran: 128 + 9, for SIGKILL."""
ENGINE_AWAY = (RequestException, HTTPError, struct.error)
LABEL = "music-genre"
_OF_THE_COMMAND = ("MUSIC_GENRE_", "OMP_NUM_THREADS", VISIBLE_VARIABLE)
"""Name prefixes of the worker's variables that a command needs. No credential has such a name."""
_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")
"""A time stamp in the log. Its width is fixed, so stamps can be compared as bytes."""
_WAITED_FOR = {
    *("deferred", "queued", "restarting", "running", "scheduled"),
    *("up_for_reschedule", "up_for_retry"),
}


def container_name(stack: str, ti: Any) -> str:
    """Return the name of a task's container: all tries share this name, no other task has it."""
    words = [stack, ti.dag_id, ti.run_id, ti.task_id, ti.map_index]
    return f"{LABEL}-{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:24]}"


def digest(image: str, words: Sequence[str]) -> str:
    """Hash a Docker image's name and a command, to tell commands apart."""
    return hashlib.sha256(json.dumps([image, *words]).encode()).hexdigest()


def labels_of(stack: str, ti: Any, command: str) -> dict[str, str]:
    """Build the labels that say which task a container is for."""
    values = {
        "dag": ti.dag_id,
        "run": ti.run_id,
        "task": ti.task_id,
        "map-index": str(ti.map_index),
        "try": str(ti.try_number),
        "command": command,
    }
    return {STACK_LABEL: stack} | {f"{LABEL}.{name}": value for name, value in values.items()}


def stack_of(worker: Mapping[str, Any]) -> str:
    """Return the name of the Compose project that a worker's container belongs to."""
    return str(worker["Config"]["Labels"].get("com.docker.compose.project", ""))


def inherited_mounts(worker: Mapping[str, Any], volumes: Sequence[str]) -> list[dict[str, Any]]:
    """Copy mounts from the worker's container, so that DAGs need not name paths of the host.

    Raises:
        AirflowFailException: the worker's container has no mount at one of `volumes`.
    """
    found = {mount["Destination"]: mount for mount in worker["Mounts"]}
    if missing := set(volumes) - set(found):
        raise AirflowFailException(
            f"the worker's container has no mount at {sorted(missing)}, only at {sorted(found)}; "
            "correct the argument `volumes`, or mount the missing paths into the worker's service "
            "in docker-compose.yml"
        )
    return [
        {
            "Type": found[path]["Type"],
            "Source": found[path].get("Name") or found[path]["Source"],
            "Target": path,
            "ReadOnly": not found[path]["RW"],
        }
        for path in volumes
    ]


def container_environment(worker: Mapping[str, str], *given: Mapping[str, str]) -> dict[str, str]:
    """Select the variables in `worker` that a command needs; variables in `given` override them."""
    kept = {name: value for name, value in worker.items() if name.startswith(_OF_THE_COMMAND)}
    for each in given:
        kept.update(each)
    return kept


def is_worth_following(found: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a container runs the command named in `labels`, or has run it successfully."""
    state, command = found["State"], f"{LABEL}.command"
    if found["Config"]["Labels"].get(command) != labels[command]:
        return False
    return bool(state["Running"] or (state["Status"] == "exited" and state["ExitCode"] == 0))


def is_waited_for(ti: Any, labels: Mapping[str, str]) -> bool:
    """Ask Airflow whether a container's task is unfinished; a cleared task counts as unfinished."""
    dag, run, task, index = (
        labels.get(f"{LABEL}.{key}", "") for key in ("dag", "run", "task", "map-index")
    )
    states = ti.get_task_states(dag_id=dag, run_ids=[run], task_ids=[task]).get(run, {})
    key = task if index == "-1" else f"{task}_{index}"
    return key in states and (states[key] is None or states[key] in _WAITED_FOR)


def slot_device() -> list[DeviceRequest] | None:
    """Build the request for this slot's GPU; None if the slot computes on the CPU."""
    gpu = os.environ.get(VISIBLE_VARIABLE)
    return [DeviceRequest(device_ids=[gpu], capabilities=[["gpu"]])] if gpu else None


class LogFollower:
    """Reads a container's log as it grows; passes on no line twice, even if the stream breaks."""

    def __init__(self, engine: Any, name: str, sink: LineSink) -> None:
        self._engine, self._name = engine, name
        self._lines = Lines(sink)
        self._seen = b""

    def follow(self) -> None:
        """Pass new lines to the sink until the stream ends."""
        seen = self._seen
        since = _seconds(seen)
        for entry in self._engine.logs(self._name, stream=True, timestamps=True, since=since):
            stamp, _, text = entry.partition(b" ")
            if not _STAMP.fullmatch(stamp):  # the engine's own report of a damaged log
                self._lines.feed(entry)
            elif stamp > seen:
                self._seen = max(self._seen, stamp)
                self._lines.feed(text)
        self._lines.flush()


class Container:
    """One container of the Docker engine, running or not.

    Args:
        engine: docker-py's client.
        name: the container's name.
        sink: receives the container's lines.
    """

    def __init__(self, engine: Any, name: str, sink: LineSink) -> None:
        self._engine, self.name, self._sink = engine, name, sink

    def watch(self) -> dict[str, Any]:
        """Pass the container's lines to the sink until the container ends; returns its state.

        The log stream can break while the container runs, and is then opened again. For example,
        HAProxy cuts the stream after ten minutes without a line.
        """
        follower = LogFollower(self._engine, self.name, self._sink)
        away_since = 0.0
        while True:
            try:
                follower.follow()
                state: dict[str, Any] = self._engine.inspect_container(self.name)["State"]
                if not state["Running"]:
                    return state
                away_since = 0.0
            except NotFound:
                ended = f"container {self.name} was removed while it was running"
                return {"ExitCode": EXIT_REMOVED, "Error": ended}
            except (*ENGINE_AWAY, APIError):
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > ENGINE_AWAY_SECONDS:
                    raise
            time.sleep(LOOK_AGAIN_SECONDS)

    def last_line(self) -> str:
        """Return the last line of standard output that is not blank.

        All of the output is read, because the engine's `tail` also counts lines of standard error.
        """
        last = deque([""], maxlen=1)
        lines = Lines(lambda line: last.append(line) if line.strip() else None)
        for chunk in self._engine.logs(self.name, stderr=False, stream=True, follow=False):
            lines.feed(chunk)
        lines.flush()
        return last[0]

    def inspect(self) -> dict[str, Any] | None:
        """Inspect the container; None if it does not exist."""
        try:
            return dict(self._engine.inspect_container(self.name))
        except NotFound:
            return None

    def stop(self) -> None:
        """Have the engine send SIGTERM and, after the grace period, SIGKILL.

        The engine sends SIGKILL even if this process dies in the meantime.
        """
        with contextlib.suppress(APIError, *ENGINE_AWAY):
            self._engine.stop(self.name, timeout=int(TERM_GRACE_SECONDS))

    def remove(self) -> None:
        """Remove the container; if that fails, a later task removes it."""
        try:
            self._engine.remove_container(self.name, force=True)
        except NotFound:
            pass
        except (APIError, *ENGINE_AWAY) as error:
            self._sink(f"cannot remove container {self.name} ({error}); a later task removes it")


def _seconds(stamp: bytes) -> int | None:
    """Convert a UTC time stamp of the engine's log to Unix seconds; an empty stamp gives None."""
    if not stamp:
        return None
    return int(datetime.fromisoformat(f"{stamp[:19].decode()}+00:00").timestamp())
