"""Prepare the metadata database: migrate the schema, create the admin user. Idempotent."""

import os
from importlib.metadata import version
from typing import Any

import psycopg2

from fleet.contract import pools, queues

ADMIN = "admin"
PASSWORD_VARIABLE = "MUSIC_GENRE_ADMIN_PASSWORD"  # noqa: S105 (a name, not a password)
PACKAGES = ("apache-airflow", "apache-airflow-providers-fab")
"""The database schema depends on the versions of these packages."""


def initialise() -> None:
    """Prepare the database, unless it is already prepared for these package versions and pools.

    A query finds out whether it is prepared. The query needs no import of Airflow and takes a
    tenth of a second. Importing Airflow would take seconds, and while a stack starts, all
    components compete for the CPU.

    Raises:
        SystemExit: the password is not set, or the user could not be created.
    """
    password = os.environ.get(PASSWORD_VARIABLE)
    if not password:
        raise SystemExit(f"error: {PASSWORD_VARIABLE} is not set; set it to the admin's password")
    made = [f"{name}=={version(name)}" for name in PACKAGES]
    versions = " ".join([*made, *(f"pool {name}" for name in pools(queues()))])
    address = os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "")
    connection = psycopg2.connect(address)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS fleet_init (versions text PRIMARY KEY)")
        if _is_done(cursor, versions):
            return
        from airflow.utils.providers_configuration_loader import providers_configuration_loaded

        providers_configuration_loaded(_migrate)(password)
        cursor.execute("DELETE FROM fleet_init")
        cursor.execute("INSERT INTO fleet_init VALUES (%s)", (versions,))


def _is_done(cursor: Any, versions: str) -> bool:
    cursor.execute("SELECT 1 FROM fleet_init WHERE versions = %s", (versions,))
    return cursor.fetchone() is not None


def put_in_line() -> None:
    """Give the waiting tasks of an older stack the pools and weights of today's policy.

    Airflow itself would leave them as they are: in a pool of 128 slots, behind every newer task.
    """
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import State
    from sqlalchemy import or_, select

    from fleet.policy import DEFAULT_POOL, PLACES, arrival, in_line

    waiting = or_(TaskInstance.state.is_(None), TaskInstance.state.not_in(State.finished))
    with create_session() as session:
        asked = select(TaskInstance, DagRun).join(TaskInstance.dag_run).where(waiting)
        old = or_(TaskInstance.pool == DEFAULT_POOL, TaskInstance.priority_weight < PLACES)
        unfinished = DagRun.state.in_(State.unfinished_dr_states)
        for task, run in session.execute(asked.where(old, unfinished)):
            queue = queues().get(str(task.queue))
            if queue and task.pool == DEFAULT_POOL:
                task.pool = queue.pool
            task.priority_weight = in_line(task.priority_weight or 1, arrival(run))


def _migrate(password: str) -> None:
    """Migrate the schema, sync the roles, and create missing pools and the admin user.

    `password` is read from an environment variable, not from a command line, because the process
    list shows command lines. If the user exists, its password is not changed.
    """
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
    from airflow.utils import db

    from fleet.pools import make_missing_pools

    db.upgradedb()
    make_missing_pools()
    put_in_line()
    with get_application_builder() as appbuilder:
        security = appbuilder.sm
        security.sync_roles()
        if security.find_user(ADMIN):
            return
        role = security.find_role("Admin")
        if not security.add_user(ADMIN, "Admin", "User", "admin@localhost", role, password):
            raise SystemExit("error: the admin user could not be created; see the lines above")
