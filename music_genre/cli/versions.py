"""The commands of version control."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from music_genre.cli.options import address, artifacts_option, taking

if TYPE_CHECKING:
    from music_genre.versioning import Access


def given_file(text: str) -> Path | None:
    """Return a file's path; None if it is empty, because that means a secret was not given."""
    path = address(text)
    if not path.exists():
        raise click.BadParameter(f"{path} does not exist.")
    if not path.is_file() or not path.stat().st_size:
        return None
    if not os.access(path, os.R_OK):
        raise click.BadParameter(
            f"{path} may not be read by user {os.getuid()}; give the file to that user."
        )
    return path


access_options = taking(
    click.option(
        "--git",
        envvar="MUSIC_GENRE_GIT",
        show_envvar=True,
        help="Repository of the versions: an URL, or a folder, made where it is missing.",
    ),
    click.option(
        "--remote",
        envvar="MUSIC_GENRE_DVC_REMOTE",
        show_envvar=True,
        help="Where DVC keeps the bytes: s3://bucket/folder, or a folder.",
    ),
    click.option(
        "--git-credentials",
        "credentials",
        type=given_file,
        envvar="MUSIC_GENRE_GIT_CREDENTIALS",
        show_envvar=True,
        metavar="FILE",
        help="Lines https://user:token@host that open the repository.",
    ),
    click.option(
        "--git-key",
        "key",
        type=given_file,
        envvar="MUSIC_GENRE_GIT_KEY",
        show_envvar=True,
        metavar="FILE",
        help="SSH key that opens the repository.",
    ),
    click.option(
        "--git-known-hosts",
        "known_hosts",
        type=given_file,
        envvar="MUSIC_GENRE_GIT_KNOWN_HOSTS",
        show_envvar=True,
        metavar="FILE",
        help="SSH keys of the repository's host.",
    ),
)


def take_access(options: dict[str, Any]) -> "Access | None":
    """Make the access from a command's options; None if neither address is given."""
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
        help="A folder, which stays where it is, or dvc:PATH of the repository.",
    ),
    click.option("--revision", default="", help="Branch, tag or commit.  [default: the newest]"),
)


@click.command()
@data_options
@artifacts_option
@access_options
def pull(data: str, revision: str, store: Path, **options: Any) -> dict[str, Any]:
    """Bring a data set at a revision here."""
    from music_genre.versioning import pull

    return pull(data, store, take_access(options), revision)


@click.command()
@click.option("--run", type=address, help="Publish this model: what train printed.")
@click.option("--data", type=address, help="Publish this folder of audio instead.")
@click.option("--name", help="What the data set is called in the repository.")
@click.option("--airflow-run", default="", help="What the commit names as the run it comes from.")
@click.option("--data-version", default="", help="The version that pull printed.")
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
    """Publish a model: bytes to DVC's remote, then a commit and a tag.

    Or a data set, with --data and --name. Cut off anywhere, the same command completes it; where
    nothing is new, nothing is committed.
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
