"""`python -m fleet`: the commands that need Airflow installed; people and both stacks run them."""

import argparse
import sys

from fleet.contract import ContractError, queues


def main() -> None:
    """Run one subcommand; if it fails, it prints one error line and exits with status 1."""
    parser = argparse.ArgumentParser(prog="python -m fleet", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init", help="migrate the metadata database and create the admin user")
    commands.add_parser(
        "housekeeper", help="keep each pool as large as its live workers have slots, for ever"
    )
    commands.add_parser("bucket", help="create the S3 bucket if it does not exist")
    worker = commands.add_parser(
        "worker", help="run a Celery worker for one queue of deploy/queues.toml"
    )
    worker.add_argument("queue", help=f"one of {', '.join(queues())}")
    commands.add_parser(
        "flower", help="serve Flower; further arguments go to `airflow celery flower`"
    )
    arguments, rest = parser.parse_known_args()
    if rest and arguments.command != "flower":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if arguments.command == "init":
        from fleet.init import initialise

        initialise()
    elif arguments.command == "housekeeper":
        from fleet.pools import keep_house

        keep_house()
    elif arguments.command == "bucket":
        from fleet.bucket import ensure_bucket

        ensure_bucket()
    elif arguments.command == "flower":
        from fleet.workers.flower import run_flower

        run_flower(*rest)
    else:
        from fleet.workers.worker import run_worker

        run_worker(arguments.queue)


if __name__ == "__main__":
    try:
        main()
    except ContractError as error:
        sys.exit(f"error: {error}")
