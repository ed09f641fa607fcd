"""Make a metadata database ready: schema up to date, one admin user. Harmless when repeated."""

import os

from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
from airflow.utils import db
from airflow.utils.providers_configuration_loader import providers_configuration_loaded

ADMIN = "admin"
PASSWORD_VARIABLE = "MUSIC_GENRE_ADMIN_PASSWORD"  # noqa: S105 (a name, no password)


@providers_configuration_loaded
def initialise() -> None:
    """Migrate the schema, sync the roles, create the admin user where it is missing.

    The password comes by environment, because a command line shows in the process list; the
    password of a user who exists stays as it is.

    Raises:
        SystemExit: the password is not set, or the user could not be created.
    """
    password = os.environ.get(PASSWORD_VARIABLE)
    if not password:
        raise SystemExit(f"error: {PASSWORD_VARIABLE} is not set; put the admin's password there")
    db.upgradedb()
    with get_application_builder() as appbuilder:
        security = appbuilder.sm
        security.sync_roles()
        if security.find_user(ADMIN):
            return
        role = security.find_role("Admin")
        if not security.add_user(ADMIN, "Admin", "User", "admin@localhost", role, password):
            raise SystemExit("error: the admin user could not be created; see the lines above")
