"""The executor of both stacks: a CeleryExecutor that waits for Redis and notices lost workers.

With the CeleryExecutor (providers-celery 3.26.0), the scheduler ends if Redis refuses a connection
while tasks run. A task that cannot be sent counts as failed, so its tries are used up in seconds.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.providers.celery.executors.celery_executor import CeleryExecutor
from airflow.providers.common.compat.sdk import timeout
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError, ResponseError
from sqlalchemy import select

from fleet.contract import LEASE_KEY, LEASE_SECONDS

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

LOOK_SECONDS = 5.0
"""How often the executor looks for the leases of its tasks."""
LOST_SECONDS = 10.0
"""How long a lease must be missing, without a fault of Redis, before the executor asks the database
for the heartbeat of the lease's task."""
BACK_SECONDS = 60.0
"""Time after a start or a fault of Redis in which no lease counts as missing: workers need up to
half a minute to connect again, and supervisors to reach the webserver."""
REVOKING_SECONDS = 2
"""Time limit of a message to the workers; while Redis is silent, Celery would try without end."""
SENDING, ASKING = "sending tasks", "asking for results"
"""What Redis was needed for when a fault began; while one of these lasts, Redis is away."""
AWAY = (OperationalError, RedisError, AirflowTaskTimeout, OSError)
"""The errors that are raised if Redis cannot be reached, is silent, or refuses a command."""
ON_A_WORKER = (TaskInstanceState.RUNNING, TaskInstanceState.RESTARTING)
WAITING = (TaskInstanceState.SCHEDULED, TaskInstanceState.QUEUED, *ON_A_WORKER)
"""The states of a task of which a result can still come."""


def is_refusal(error: object) -> bool:
    """Whether Redis answers, but refuses a command; kombu wraps the error in one of its own."""
    return any(isinstance(each, ResponseError) for each in (error, getattr(error, "__cause__", 0)))


class FleetExecutor(CeleryExecutor):
    """Keeps tasks queued until Redis takes them; reports a task as failed if its worker is gone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        # The scheduler's main loop waits for results so long (default 120 s).
        self.celery_app.conf.update(redis_socket_timeout=5.0, redis_socket_connect_timeout=5.0)
        self._faults: set[str] = set()
        self._missing: dict[str, float] = {}
        self._look_at = time.monotonic() + BACK_SECONDS

    def _send_workloads_to_celery(self, workload_tuples_to_send: Sequence[Any]) -> list[Any]:
        """Send tasks, and stop at the first task that cannot be sent because Redis is away.

        A task that is not in the result stays in the executor's queue and is sent again at the next
        heartbeat of the scheduler.
        """
        sent: list[Any] = []
        refused: set[str] = set()
        for each in workload_tuples_to_send:
            if (queue := each[2]) in refused:
                continue
            (row,) = super()._send_workloads_to_celery([each])
            error = getattr(row[2], "exception", None)
            if is_refusal(error):
                refused.add(queue)
                self._say(f"queue {queue}", str(error))
            elif isinstance(error, AWAY):
                n_left = len(workload_tuples_to_send) - len(sent)
                self._say(SENDING, f"{error}; tasks that stay queued: {n_left}")
                return sent
            else:
                sent.append(row)
                self._say(f"queue {queue}", "")
        self._say(SENDING, "")
        return sent

    def update_all_workload_states(self) -> None:
        """Ask Redis for tasks' results and leases; if Redis is silent, the next call asks again."""
        try:
            super().update_all_workload_states()
            self._look_for_lost()
        except AWAY as error:
            self._missing.clear()
            self._look_at = time.monotonic() + BACK_SECONDS
            self._say(ASKING, str(error))
        else:
            self._say(ASKING, "")

    def try_adopt_task_instances(self, tis: Sequence["TaskInstance"]) -> Sequence["TaskInstance"]:
        """Adopt the tasks of a scheduler that is gone, even while Redis does not answer.

        A task that is not adopted would be sent a second time.
        """
        try:
            return super().try_adopt_task_instances(tis)
        except AWAY as error:
            self._say(ASKING, str(error))
            return self._adopt_unasked(tis)

    def revoke_task(self, *, ti: "TaskInstance") -> None:
        """Forget a task; if Redis answers, tell the workers to ignore the task's message.

        While Redis is away, each attempt to tell them would block the scheduler for seconds.
        """
        result = self.workloads.pop(ti.key, None)
        if result is not None and not self._faults & {SENDING, ASKING}:
            with suppress(*AWAY), timeout(REVOKING_SECONDS):
                self.celery_app.control.revoke(result.task_id)
        super().revoke_task(ti=ti)

    def _adopt_unasked(self, tis: Sequence["TaskInstance"]) -> Sequence["TaskInstance"]:
        sent = [ti for ti in tis if ti.external_executor_id is not None]
        for ti in sent:
            self.workloads[ti.key] = self.celery_app.AsyncResult(ti.external_executor_id)
            self.running.add(ti.key)
        return [ti for ti in tis if ti.external_executor_id is None]

    def _look_for_lost(self) -> None:
        """Look for tasks without a lease; ask the database about those that stay without one.

        Airflow itself misses a task only when its last heartbeat is `OUTAGE_SECONDS` old, because a
        task goes on while the webserver is away.
        """
        now = time.monotonic()
        if now < self._look_at or not self.workloads:
            return
        self._look_at = now + LOOK_SECONDS
        keys = {result.task_id: key for key, result in self.workloads.items()}
        leases = self.celery_app.backend.client.mget([f"{LEASE_KEY}{each}" for each in keys])
        missing = [each for each, lease in zip(keys, leases, strict=True) if lease is None]
        self._missing = {each: self._missing.get(each, now) for each in missing}
        suspects = [each for each, since in self._missing.items() if now - since > LOST_SECONDS]
        tasks = {each: key for each in suspects if isinstance(key := keys[each], TaskInstanceKey)}
        found = states_of([*tasks.values()])
        self._settle([*tasks.values()], found)
        for each, key in tasks.items():  # a task that starts now has not missed a lease yet
            if found.get(key, (None, 0.0))[0] not in ON_A_WORKER:
                del self._missing[each]

    def _settle(
        self,
        suspects: Sequence[TaskInstanceKey],
        found: dict[TaskInstanceKey, tuple[str | None, float]],
    ) -> None:
        """Report lost tasks as failed; forget tasks that are over, of which no result has come.

        Args:
            suspects: tasks without a lease.
            found: task → its state, and the age of its last heartbeat in seconds.
        """
        for key in suspects:
            state, age = found.get(key, (None, 0.0))
            if state in ON_A_WORKER and age > LEASE_SECONDS:
                words = "error: %s: its worker is gone: no lease, and no heartbeat for %.0f s"
                self.log.error(words, key, age)
                self.fail(key)
            elif state not in WAITING:
                self.running.discard(key)
                self.workloads.pop(key, None)

    def _say(self, what: str, fault: str) -> None:
        """Log a fault when it begins, and a line when it is over."""
        if fault and what not in self._faults:
            self._faults.add(what)
            self.log.error("error: Redis, %s: %s; trying again until Redis answers", what, fault)
        elif not fault and what in self._faults:
            self._faults.remove(what)
            self.log.info("Redis, %s: it answers again", what)


def states_of(keys: Sequence[TaskInstanceKey]) -> dict[TaskInstanceKey, tuple[str | None, float]]:
    """Return task → its state in the database, and the age of its last heartbeat in seconds.

    A task that has begun another try is left out.
    """
    from airflow.models.taskinstance import TaskInstance

    now, theirs = datetime.now(UTC), TaskInstance.filter_for_tis(keys)
    if theirs is None:  # there are no keys
        return {}
    with create_session() as session:
        rows = session.scalars(select(TaskInstance).where(theirs))
        ages = {row.key: (row.state, now - (row.last_heartbeat_at or now)) for row in rows}
    return {key: (ages[key][0], ages[key][1].total_seconds()) for key in keys if key in ages}
