"""The command group: it prints each result or error as one line and sets the exit code."""

import errno
import json
import logging
import os
import signal
import sys
from types import FrameType
from typing import Any

import click

from music_genre import __version__
from music_genre.config import CRITERIA
from music_genre.errors import InputError, MusicGenreError, TemporaryError
from music_genre.store import signals

EXIT_USAGE = 64
"""Exit code of a usage error: EX_USAGE of sysexits.h."""
LASTING = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR),
    *(errno.EISDIR, errno.EEXIST, errno.EROFS, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.EINVAL),
}
"""Only the user can fix these storage errors; other errors, such as a full disk, can go away."""


class Commands(click.Group):
    """Lists commands in pipeline order; prints an error as one line and sets the exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the commands' names in the order in which they were added."""
        return list(self.commands)

    def make_context(self, *given: Any, **options: Any) -> click.Context:
        """Parse the options before a command's name; on a usage error, exit with `EXIT_USAGE`."""
        try:
            return super().make_context(*given, **options)
        except click.UsageError as error:
            error.exit_code = EXIT_USAGE  # type: ignore[misc] # click reads it from there
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; if it fails, print the error as one line and set the exit code."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            path = (error.ctx or ctx).command_path
            _fail(ctx, EXIT_USAGE, f"{error.format_message()} See: {path} --help")
        except MusicGenreError as error:
            _fail(ctx, error.exit_code, str(error))
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # nobody reads the output any more; click exits without a message
            _fail(ctx, _code(error), f"{error.filename or 'storage'}: {error.strerror or error}")


def _code(error: OSError) -> int:
    return (InputError if error.errno in LASTING else TemporaryError).exit_code


def _fail(ctx: click.Context, code: int, message: str) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    ctx.exit(code)


def _stop(number: int, _frame: FrameType | None) -> None:
    """End the process at once; training replaces this handler, because it must save its state."""
    signals.end_at_once(number)


@click.group(
    cls=Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        # Accept underscores in place of hyphens: options of the first program have underscores.
        "token_normalize_func": lambda token: (
            token if token in CRITERIA else token.replace("_", "-")
        ),
    },
)
@click.version_option(__version__)
def commands() -> None:
    """Train music-genre classifiers: from audio folders to images to a trained, evaluated model.

    Every stage prints its result as one JSON line, the last line on standard output, and reuses
    work that is already done. predict prints a table or, with --json, a JSON line for each file.
    Exit codes: 0 done, 64 wrong usage, 65 fix your input, 70 crash, 75 try again (sysexits.h).
    """
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("music_genre").setLevel(logging.INFO)
    for number in signals.heard():
        signal.signal(number, _stop)
    # GOMP_SPINCOUNT is how many times an idle thread of torch checks for work before it sleeps.
    # 10000 is large enough to keep the thread awake until the next small operation, and small
    # enough to leave the cores to other programs. Measured images/s of shufflenet_v2_x0_5, alone
    # and beside two busy programs: 519 and 118 with 10000, 487 and 65 with GOMP's default, 213 and
    # 141 without spinning. The variable is read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Without this setting, cuBLAS can add the same numbers in a different order each time, which
    # changes the rounding. The variable is read when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@commands.result_callback()
def _print_result(result: dict[str, Any] | None) -> None:
    if result is not None:
        click.echo(json.dumps(result))
