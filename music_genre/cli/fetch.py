"""The `fetch` command, which fetches a collection of music."""

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
    help="URL of the archive, or path of a local archive.  [default: the author's archive, hosted "
    "by Hugging Face]",
)
@click.option(
    "--into", type=address, default=".", show_default=True, help="Folder for the collection."
)
@click.option("--checksum", default="", help="Expected SHA-256 of the archive that --from names.")
def fetch(collection: str, source: str | None, into: Path, checksum: str) -> dict[str, Any]:  # noqa: ARG001
    """Fetch a collection and report its known faults.

    gtzan has 1,000 clips of ten genres. An interrupted download resumes where it stopped.
    """
    from music_genre.dataset.gtzan import ADDRESS, fetch

    with shown_progress("fetch") as progress:
        return fetch(source or ADDRESS, into, checksum=checksum, progress=progress)
