"""Run the work of a task as one command in a new process.

A separate process avoids the problems of torch in a forked Celery child (CUDA after fork, daemonic
children, locks held across a fork). The process can be signalled and watched, and its ML packages
stay separate from Airflow's packages.
"""

import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import Asset, BaseOperator, Context
from airflow.sdk.exceptions import AirflowFailException

from fleet.operators.credentials import with_s3_connection
from fleet.operators.outcome import (
    Told,
    alias_of,
    announce,
    quoted,
    raise_for,
    read_result,
    tell_why_last,
)
from fleet.operators.process import TERM_GRACE_SECONDS, CommandProcess, become_task_of_a_command

_AIRFLOWS_OWN = ("AIRFLOW", "_AIRFLOW", "CELERY", "FLOWER")


class CommandOperator(BaseOperator):
    """Run one command; its last line on standard output, a JSON object, is the task's result.

    Every other line goes to the task log. A line that begins with `error:` is logged as an error.
    The exit status, as in sysexits.h, decides how the task ends. 0: the task succeeds. 65 (fix the
    input), 64 and 2 (usage error): the task fails without a retry. 75: the task is rescheduled
    without using up a retry. Any other status or a signal: the task fails, and is retried while
    retries are left.

    SIGTERM is passed on to the command. A command that outlives its grace period is killed with all
    its descendants. If the command fails because its worker stops, the task is rescheduled,
    whatever the exit status. The command gets the worker's environment without Airflow's and
    Celery's variables, so the command sees no broker address or token.

    Args:
        command: program and arguments, templated. No shell is used, so shell syntax in a run's
            parameters has no effect.
        asset: the asset that the command makes. The asset's event carries the task's result. If the
            result has `"reused": true`, nothing new was made and there is no event.
        s3_connection: id of the Airflow connection whose credentials the command gets. If there
            is no such connection, the command gets the worker's credentials.
    """

    template_fields: Sequence[str] = ("command",)

    def __init__(
        self,
        *,
        command: Sequence[Any],
        asset: Asset | None = None,
        s3_connection: str | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**{"outlets": alias_of(asset), **arguments})
        self.command, self.asset, self.s3_connection = command, asset, s3_connection
        self._process: CommandProcess | None = None
        self._last_line = ""
        self._must_end = False
        tell_why_last(self)

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the command and wait until it ends.

        Raises:
            AirflowFailException: the exit status is in `outcome.EXITS_FINAL`, the command succeeded
                but its result is invalid, or the connection has no credentials.
            AirflowRescheduleException: the exit status is 75, or the worker stops.
            AirflowTaskTerminated, AirflowSkipException: the command was stopped because its task
                was marked with a final state, was cleared, or timed out.
            AirflowException: the command ended in any other way.
        """
        become_task_of_a_command()
        self.told = Told(self.log)
        context["ti"].xcom_push("worker", worker_name())
        words = [str(word) for word in self.command]
        self.log.info("%s runs: %s", worker_name(), shlex.join(words))
        environment = command_environment(os.environ)
        if self.s3_connection:
            environment = with_s3_connection(environment, self.s3_connection)
        try:
            self._process = CommandProcess(words, environment)
        except FileNotFoundError as error:
            raise AirflowFailException(f"{error}; install the command on this worker") from error
        if self._must_end:  # SIGTERM came before the process existed
            self._process.terminate()
        status = self._process.stream(self._on_stdout, self.told.line)
        if status != 0 and self._last_line:
            self.told.output(self._last_line)
        raise_for(status, self._ended(status, words), context, must_end=self._must_end)
        result = read_result(self._last_line, words)
        self.log.info("result: %s", self._last_line)
        announce(self.asset, result, context)
        return result

    def on_kill(self) -> None:
        """Pass SIGTERM on to the command; `execute` still waits for the command's end."""
        self._must_end = True
        if self._process is not None:
            self._process.terminate()

    def _on_stdout(self, line: str) -> None:
        """Keep the newest line and log the line before it, because the last line is the result."""
        if not line.strip():
            return
        if self._last_line:
            self.told.output(self._last_line)
        self._last_line = line

    def _ended(self, status: int, words: list[str]) -> str:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        if self._must_end and status == -signal.SIGKILL:
            how += f", because it was still running {TERM_GRACE_SECONDS:.0f} s after SIGTERM"
        return f"{quoted(words)} ended with {how}"


def command_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of the worker's environment without Airflow's and Celery's variables."""
    return {
        name: value for name, value in environment.items() if not name.startswith(_AIRFLOWS_OWN)
    }


def worker_name() -> str:
    """Return the Celery worker's name, such as `gpu@host`; outside Celery, the host's name."""
    from celery import current_task  # here, so that parsing a DAG does not import celery

    return str(current_task.request.hostname) if current_task else os.uname().nodename
