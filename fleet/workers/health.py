"""Health checks of the stack's containers; each check takes a few hundredths of a second.

Airflow's own command-line checks (`airflow jobs check`, `celery inspect ping`) import all of
Airflow. Each import takes 1.2 to 2 s of CPU time. While the stack starts, such a check takes longer
than its time-out.

Arguments of `python -m fleet.workers.health`, and the condition that each check tests:

    http PORT PATH [STATUS]   the server answers with STATUS, by default 200
    webserver PORT            Airflow's API for workers, below Airflow's base URL, answers
    job TYPE                  this host's Airflow job of type TYPE sends heartbeats
    alive                     this worker sends heartbeats to the broker
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

JOB_SECONDS = {"SchedulerJob": 30, "DagProcessorJob": 30, "TriggererJob": 30}
"""Seconds without a heartbeat after which a job counts as dead. Heartbeats come every 5 s."""
ALIVE_SECONDS = 20
"""Seconds without a heartbeat after which a worker counts as dead. Heartbeats come every 2 s."""


def http(port: str, path: str, wanted: str = "200") -> str:
    """Send a request to a server on this host; returns the fault, or an empty string."""
    connection = HTTPConnection("127.0.0.1", int(port), timeout=5)
    connection.request("GET", path)
    status = connection.getresponse().status
    return "" if status == int(wanted) else f"the server answered {status}"


def webserver(port: str) -> str:
    """Check Airflow's API for workers, which is below the path of Airflow's base URL."""
    base = urlsplit(os.environ.get("AIRFLOW__API__BASE_URL", "")).path.rstrip("/")
    return http(port, f"{base}/execution/health")


def job(kind: str) -> str:
    """Check the age of the job's heartbeat in the metadata database, like `airflow jobs check`."""
    import psycopg2  # imported here, because only this check accesses the database

    address = os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "")
    query = (
        "SELECT extract(epoch FROM now() - max(latest_heartbeat)) FROM job "
        "WHERE job_type = %s AND hostname = %s AND state = 'running'"
    )
    with psycopg2.connect(address, connect_timeout=5) as connection:
        with connection.cursor() as cursor:
            cursor.execute(query, (kind, socket.gethostname()))
            (age,) = cursor.fetchone() or (None,)
    if age is None:
        return f"no running {kind} on host {socket.gethostname()}"
    return "" if age < JOB_SECONDS[kind] else f"no heartbeat of {kind} for {age:.0f} s"


def alive() -> str:
    """Check the age of the file that the worker touches at each heartbeat."""
    try:
        age = time.time() - Path(os.environ["FLEET_ALIVE_FILE"]).stat().st_mtime
    except FileNotFoundError:
        return "no heartbeat yet"
    return "" if age < ALIVE_SECONDS else f"no heartbeat for {age:.0f} s"


CHECKS: dict[str, Callable[..., str]] = {
    "http": http,
    "webserver": webserver,
    "job": job,
    "alive": alive,
}


def main() -> None:
    """Run one check; if it fails, print the fault in one line and exit with status 1."""
    try:
        fault = CHECKS[sys.argv[1]](*sys.argv[2:])
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    if fault:
        sys.exit(f"unhealthy: {fault}")


if __name__ == "__main__":
    main()
