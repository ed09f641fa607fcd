"""Tasks of a user: install a package, fill /tmp, return a link, print a line and go on running."""

import tempfile
import time
from datetime import timedelta

from airflow.sdk import DAG, task


@task.virtualenv(
    requirements=["of-users==1.0"],
    pip_install_options=["--no-index", "--find-links", "/artifacts/wheels"],
    system_site_packages=False,
)
def own_package():
    import of_users

    return of_users.ANSWER


@task
def links(ti=None):
    return ti.log_url


@task(retries=0)
def fills_tmp():
    with tempfile.TemporaryFile() as file:
        for _ in range(3000):
            file.write(bytes(2**20))


@task
def is_watched():
    print("watch me", flush=True)
    time.sleep(15)


with DAG(
    "of_users",
    schedule=None,
    is_paused_upon_creation=False,
    default_args={"queue": "cpu", "retry_delay": timedelta()},
):
    own_package() >> fills_tmp()
    links()
    is_watched()
