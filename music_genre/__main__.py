"""The `music-genre` command, also run as `python -m music_genre`."""

from music_genre.cli import commands


def main() -> None:
    """Run the command line and exit with its code."""
    commands(prog_name="music-genre")


if __name__ == "__main__":
    main()
