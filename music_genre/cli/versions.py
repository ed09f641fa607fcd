"""The version-control commands `pull` and `publish`, and the options that they need."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from music_genre.cli.options import address, artifacts_option, taking

if TYPE_CHECKING:
    from music_genre.versioning import Access


def given_file(text: str) -> Path | None:
    """Return a secret file's path; None (no secret) if the file is empty or not a regular file."""
    path = address(text)
    if not path.exists():
        raise click.BadParameter(f"{path} does not exist.")
    if not path.is_file() or not path.stat().st_size:
        return None
    if not os.access(path, os.R_OK):
        raise click.BadParameter(
            f"{path} is not readable by user {os.getuid()}; make that user its owner."
        )
    return path


access_options = taking(
    click.option(
        "--git",
        envvar="MUSIC_GENRE_GIT",
        show_envvar=True,
        help="Git repository for data and model versions: a URL, or a folder, created if missing.",
    ),
    click.option(
        "--remote",
        envvar="MUSIC_GENRE_DVC_REMOTE",
        show_envvar=True,
        help="DVC remote that stores the data: s3://bucket/folder, or a folder.",
    ),
    click.option(
        "--git-credentials",
        "credentials",
        type=given_file,
        envvar="MUSIC_GENRE_GIT_CREDENTIALS",
        show_envvar=True,
        metavar="FILE",
        help="Credentials for the repository: lines of the form https://user:token@host.",
    ),
    click.option(
        "--git-key",
        "key",
        type=given_file,
        envvar="MUSIC_GENRE_GIT_KEY",
        show_envvar=True,
        metavar="FILE",
        help="Private SSH key for the repository.",
    ),
    click.option(
        "--git-known-hosts",
        "known_hosts",
        type=given_file,
        envvar="MUSIC_GENRE_GIT_KNOWN_HOSTS",
        show_envvar=True,
        metavar="FILE",
        help="File of known hosts with the SSH keys of the repository's host.",
    ),
)


def take_access(options: dict[str, Any]) -> "Access | None":
    """Make an `Access` from a command's options; None if neither --git nor --remote is given."""
    from music_genre.versioning import Access

    git, remote = options["git"], options["remote"]
    if not git and not remote:
        return None
    if not git or not remote:
        missing = "--remote (MUSIC_GENRE_DVC_REMOTE)" if git else "--git (MUSIC_GENRE_GIT)"
        raise click.UsageError(f"{missing} is missing.")
    return Access(**options)


data_options = taking(
    click.option(
        "--data",
        required=True,
        metavar="ADDRESS",
        help="A folder, which is used in place, or dvc:PATH for data in the repository.",
    ),
    click.option(
        "--revision", default="", help="Branch, tag or commit.  [default: the newest commit]"
    ),
)


@click.command()
@data_options
@artifacts_option
@access_options
def pull(data: str, revision: str, store: Path, **options: Any) -> dict[str, Any]:
    """Fetch a revision of a data set."""
    from music_genre.versioning import pull

    return pull(data, store, take_access(options), revision)


@click.command()
@click.option("--run", type=address, help="Publish this model: the run address that train printed.")
@click.option("--data", type=address, help="Publish this folder of audio instead of a model.")
@click.option("--name", help="Name of the data set in the repository.")
@click.option(
    "--airflow-run", default="", help="Airflow run to record in the commit as the origin."
)
@click.option(
    "--data-version", default="", help="Data version to record in the commit, as printed by pull."
)
@artifacts_option
@access_options
def publish(
    run: Path | None,
    data: Path | None,
    name: str | None,
    airflow_run: str,
    data_version: str,
    store: Path,
    **options: Any,
) -> dict[str, Any]:
    """Publish a model: push its files to the DVC remote, then a commit and a tag to Git.

    With --data and --name, publish a data set instead of a model. If publishing is interrupted at
    any point, run the same command again to complete it. If nothing has changed, nothing is
    committed.
    """
    from music_genre import versioning

    access = take_access(options)
    if access is None:
        raise click.UsageError("--git and --remote are missing.")
    if run and not data and not name:
        return versioning.publish_run(
            run, store, access, airflow_run=airflow_run, data_version=data_version
        )
    if data and name and not run:
        return versioning.publish_data(data, name, store, access)
    raise click.UsageError("Give --run, or --data with --name.")
