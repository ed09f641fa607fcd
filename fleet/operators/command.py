"""Run the work as a task: one command in a fresh process.

A separate process avoids the problems of torch in a forked Celery child (CUDA after fork, daemonic
children, locks held across a fork). It can be signalled and watched, and it keeps the ML packages
apart from Airflow's.
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

    Every other line goes to the task log; one that begins with `error:` is logged as an error.
    Exit statuses are those of sysexits.h. 0: done. 65 (fix the input), 64 and 2 (usage): failed, no
    retry. 75: rescheduled, without using up a retry. Anything else, including 1 and signals, is a
    crash: failed, retried while retries are left.

    SIGTERM is passed on; a command that outlives its grace period is killed with all its
    descendants. If the command fails because its worker stops, the task is rescheduled, whatever
    the exit status. The command sees the worker's environment without Airflow's and Celery's
    variables, so no broker address or token reaches it.

    Args:
        command: program and arguments, templated; no shell, so nothing in a run's parameters is
            ever interpreted.
        asset: what the command makes. Its event carries the result; there is no event if the
            result has `"reused": true`, because nothing new was made.
        s3_connection: id of the Airflow connection whose credentials the command gets; if there
            is no such connection, the command gets the worker's.
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
        """Run the command to its end.

        Raises:
            AirflowFailException: a final exit status, exit 0 with an invalid result, or a
                connection without credentials.
            AirflowRescheduleException: exit 75, or stopped because its worker stops.
            AirflowTaskTerminated, AirflowSkipException: stopped because somebody marked or cleared
                its task, or because it timed out.
            AirflowException: any other exit.
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
        if self._must_end:  # SIGTERM came before there was a process to pass it on to
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
        """Pass SIGTERM on; `execute` keeps running and sees how the command ends."""
        self._must_end = True
        if self._process is not None:
            self._process.terminate()

    def _on_stdout(self, line: str) -> None:
        """Hold back the newest line: the last one is the result, earlier ones are log text."""
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
    """The environment of a command: the worker's, without Airflow's and Celery's own variables."""
    return {
        name: value for name, value in environment.items() if not name.startswith(_AIRFLOWS_OWN)
    }


def worker_name() -> str:
    """The Celery worker that runs this task, such as `gpu@host`; outside Celery, the host."""
    from celery import current_task  # kept out of DAG parsing

    return str(current_task.request.hostname) if current_task else os.uname().nodename
