"""The command that fetches music."""

from pathlib import Path
from typing import Any

import click

from music_genre.cli.options import address
from music_genre.cli.progress import shown_progress


@click.command()
@click.argument("collection", type=click.Choice(["gtzan"]))
@click.option(
    "--from",
    "source",
    help="Address of the archive, or an archive that is there already.  [default: the author's, "
    "as kept by Hugging Face]",
)
@click.option("--into", type=address, default=".", show_default=True, help="Folder for it.")
@click.option("--checksum", default="", help="SHA-256 that an archive from elsewhere must have.")
def fetch(collection: str, source: str | None, into: Path, checksum: str) -> dict[str, Any]:  # noqa: ARG001
    """Fetch a collection, and what is known to be wrong in it.

    gtzan has 1,000 clips of ten genres. A download that was cut off goes on where it ended.
    """
    from music_genre.dataset.gtzan import ADDRESS, fetch

    with shown_progress("fetch") as progress:
        return fetch(source or ADDRESS, into, checksum=checksum, progress=progress)
