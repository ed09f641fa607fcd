"""The executor of both stacks: a CeleryExecutor that survives an outage of Redis.

With Airflow's own CeleryExecutor (providers-celery 3.26.0) the scheduler ends if Redis refuses a
connection while tasks run. Also, a task that cannot be sent counts as failed, so all its tries are
used up in seconds.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.celery.executors.celery_executor import CeleryExecutor
from airflow.sdk.exceptions import AirflowTaskTimeout
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

AWAY = (OperationalError, RedisError, AirflowTaskTimeout, OSError)
"""The errors that are raised if Redis cannot be reached, is silent, or refuses a command."""


class FleetExecutor(CeleryExecutor):
    """Keeps tasks queued until Redis takes them, and asks for results again until Redis answers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._faults: set[str] = set()

    def _send_workloads_to_celery(self, workload_tuples_to_send: Sequence[Any]) -> list[Any]:
        """Send tasks, and stop at the first task that cannot be sent.

        A task that is not in the result stays in the executor's queue and is sent again at the next
        heartbeat of the scheduler.
        """
        sent: list[Any] = []
        for each in workload_tuples_to_send:
            (row,) = super()._send_workloads_to_celery([each])
            error = getattr(row[2], "exception", None)
            if isinstance(error, AWAY):
                n_left = len(workload_tuples_to_send) - len(sent)
                self._say("sending tasks", f"{error}; tasks that stay queued: {n_left}")
                return sent
            sent.append(row)
        self._say("sending tasks", "")
        return sent

    def update_all_workload_states(self) -> None:
        """Ask Redis for the results of tasks; if Redis is silent, the next call asks again."""
        try:
            super().update_all_workload_states()
        except AWAY as error:
            self._say("asking for results", str(error))
        else:
            self._say("asking for results", "")

    def try_adopt_task_instances(self, tis: Sequence["TaskInstance"]) -> Sequence["TaskInstance"]:
        """Adopt the tasks of a scheduler that is gone, even while Redis does not answer.

        A task that is not adopted would be sent a second time.
        """
        try:
            return super().try_adopt_task_instances(tis)
        except AWAY as error:
            self._say("adopting tasks", str(error))
            return self._adopt_unasked(tis)

    def _adopt_unasked(self, tis: Sequence["TaskInstance"]) -> Sequence["TaskInstance"]:
        sent = [ti for ti in tis if ti.external_executor_id is not None]
        for ti in sent:
            self.workloads[ti.key] = self.celery_app.AsyncResult(ti.external_executor_id)
            self.running.add(ti.key)
        return [ti for ti in tis if ti.external_executor_id is None]

    def _say(self, what: str, fault: str) -> None:
        """Log a fault when it begins, and a line when it is over."""
        if fault and what not in self._faults:
            self._faults.add(what)
            self.log.error("error: Redis, %s: %s; trying again until Redis answers", what, fault)
        elif not fault and what in self._faults:
            self._faults.remove(what)
            self.log.info("Redis, %s: it answers again", what)
