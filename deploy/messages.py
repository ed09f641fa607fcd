"""What the commands say on the way: progress on standard error, addresses on standard output."""

import sys

from rich.console import Console

from deploy.components import ADMIN
from deploy.demo import print_lines
from deploy.stack import Stack


def report(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


def print_addresses(stack: Stack, admin_password: str, flower_password: str) -> None:
    """Print where to look, and where the passwords are."""
    lines = {
        "Airflow": f"{stack.web_address}  (user {ADMIN}, {admin_password})",
        "Flower": f"{stack.flower_address}  (user {ADMIN}, {flower_password})",
        "logs": stack.logs,
    }
    print_lines(lines, Console())
