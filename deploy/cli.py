"""`python -m deploy`: bring a stack up on this machine, use it, take it down."""

import signal
import sys
from types import FrameType

import click

from deploy import generated
from deploy.containers import commands as container_commands
from deploy.embedded import commands as embedded_commands
from deploy.errors import DeployError
from deploy.messages import report

LEFT = {
    "demo": "everything that was started has been stopped",
    "down": "part of the stack may still be running; run `make down` again",
    "down-local": "part of the stack may still be running; run `make down-local` again",
    "up": "started containers keep running; `make up` continues, `make down` stops them",
    "up-local": "`make status-local` shows whether the stack runs; `make down-local` stops it",
}
"""Command → the sentence that describes the stack after an interruption of the command. Commands
that are not listed change no stack."""


class _Commands(click.Group):
    """A click group: reports an error in one line and exits 1, or 130 after an interruption."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except DeployError as error:
            print(f"error: {error}", file=sys.stderr)
            ctx.exit(1)
        except OSError as error:
            where = error.filename or "this machine"
            print(f"error: {where}: {error.strerror or error}", file=sys.stderr)
            ctx.exit(1)
        except KeyboardInterrupt:
            left = LEFT.get(ctx.invoked_subcommand or "", "nothing was changed")
            print(f"interrupted; {left}", file=sys.stderr)
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Bring a stack up on this machine, use it, take it down."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@main.command(hidden=True)
def generate() -> None:
    """Write the files that are generated from the queue contract and the table of components."""
    for path in generated.write():
        report(f"written: {path}")


for module in (embedded_commands, container_commands):
    for command in vars(module).values():
        if isinstance(command, click.Command):
            main.add_command(command)
