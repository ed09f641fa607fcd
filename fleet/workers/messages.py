"""Lease each message to the worker that took it, until the message's task has ended.

A worker acknowledges a message when the message's task has ended. Until then kombu's Redis
transport stores the message, with the time at which a worker took it, and redelivers it after
`visibility_timeout`. If a worker died between taking a message and starting its task, no other
process would notice before `visibility_timeout`. So a worker has a short lease on each of its
messages and renews the lease. Any worker puts back a message whose lease has expired.
"""

import functools
import json
import logging
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Any

from airflow.sdk.api.client import ServerResponseError
from celery import bootsteps, current_app, current_task, signals
from celery.exceptions import Ignore, Reject
from celery.worker import state
from httpx import ConnectError, ConnectTimeout, TransportError

from fleet.contract import LEASE_KEY, LEASE_SECONDS

logger = logging.getLogger(__name__)
RENEWAL_SECONDS = 5
RESULT_RETRIES = 20
"""How often a result is stored again; Celery waits up to 10 s between two attempts."""
CLOCK_SECONDS = 60
"""Difference of two machines' clocks that is allowed for when the age of a token is judged."""
_MOOT: Mapping[int, str] = {
    HTTPStatus.FORBIDDEN: "its token has expired",
    HTTPStatus.NOT_FOUND: "its try is over",
    HTTPStatus.CONFLICT: "its task is not queued",
}
"""HTTP status of the webserver → the reason why a redelivered message has nothing left to start."""


class Leases(bootsteps.StartStopStep):  # type: ignore[misc] # celery has no types
    """Renews the leases of this worker's messages; puts back any message with an expired lease.

    If a worker is cut off from Redis, other workers might put back a message whose task still runs.
    This does no harm: the webserver refuses to start the task twice (see `unless_moot`).
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Start the timer; called at the worker's start and after each reconnection to Redis."""
        channel, redis = consumer.task_consumer.channel, consumer.app.backend.client
        consumer.timer.call_repeatedly(RENEWAL_SECONDS, lambda: self._turn(channel, redis))

    def _turn(self, channel: Any, redis: Any) -> None:
        # After a reconnection to Redis, running tasks are among the active requests alone.
        requests = {*state.reserved_requests, *state.active_requests}
        renew(channel, [request.message.delivery_tag for request in requests])
        for request in requests:
            redis.set(f"{LEASE_KEY}{request.id}", 1, ex=LEASE_SECONDS)
        for tag in put_back(channel):
            logger.warning("put message %s back into its queue: its lease has expired", tag)


def renew(channel: Any, tags: Collection[str]) -> None:
    """Restart the leases of these messages now, by the clock of Redis."""
    with channel.conn_or_acquire() as client:
        now, _ = client.time()
        if tags:  # XX: do not add messages that were acknowledged meanwhile
            client.zadd(channel.unacked_index_key, dict.fromkeys(tags, now), xx=True)


def put_back(channel: Any) -> list[str]:
    """Put messages with expired leases back into their queues; returns their tags."""
    with channel.conn_or_acquire() as client:
        now, _ = client.time()
        index = channel.unacked_index_key
        tags = client.zrange(index, 0, now - LEASE_SECONDS, byscore=True)
        for tag in tags:
            channel.qos.restore_by_tag(tag, client)
    return [tag.decode() for tag in tags]


def unless_moot(run: Callable[..., None]) -> Callable[..., None]:
    """Wrap a Celery task: ignore messages that start nothing; put back messages that are too early.

    Airflow itself ignores a redelivered message whose task still runs. But the webserver checks
    the message's token before it looks at the task. If the token had expired, the webserver's
    refusal ended the running task (seen with 3.3.2 and providers-celery 3.26.0). So a redelivered
    message is ignored after a refusal in `_MOOT`. If the message's task does not run, ignoring the
    message does no harm: the scheduler notices the missing heartbeat or the time-out of queued
    tasks. A message whose token has expired is ignored even at its first delivery. Its task has
    waited for the whole time-out of queued tasks, so the scheduler sends the task again, which
    spends no try. Any other refusal of a token is an error, such as two different JWT secrets.

    If the webserver cannot be reached, for example while a stack starts, any message is put back
    and tried again; otherwise its task would lose a try. If the webserver's answer is lost or is a
    server error, the message is put back only if it had been redelivered.
    """

    @functools.wraps(run)
    def guarded(*arguments: Any, **options: Any) -> None:
        try:
            run(*arguments, **options)
        except (ServerResponseError, TransportError) as error:
            again = (current_task.request.delivery_info or {}).get("redelivered")
            status = _status(error)
            is_late = status == HTTPStatus.FORBIDDEN and has_expired(*arguments)
            if is_late or (again and status in _MOOT):
                logger.warning("ignoring a message: %s", _MOOT[status])
                raise Ignore from error
            unheard = isinstance(error, ConnectError | ConnectTimeout)
            if unheard or (again and status >= HTTPStatus.INTERNAL_SERVER_ERROR):
                logger.warning("putting a message back into its queue: %s", error)
                raise Reject(error, requeue=True) from error
            raise

    return guarded


def has_expired(workload: str) -> bool:
    """Whether the token in a message is so old that the webserver can refuse it for its age."""
    try:
        part = json.loads(workload)["token"].split(".")[1]
        claims = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return bool(claims["exp"] < time.time() + CLOCK_SECONDS)
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


@signals.worker_init.connect
def hold_messages_by_lease(sender: Any, **_: Any) -> None:
    """Add the leases, and wrap Airflow's Celery task before the pool processes are forked."""
    sender.app.steps["consumer"].add(Leases)
    task = sender.app.tasks["execute_workload"]
    task.run = unless_moot(task.run)


@signals.worker_process_init.connect
def store_results_again(**_: Any) -> None:
    """Let a pool process try for two minutes to store a result while Redis is away.

    Without a result the executor would count the task as unfinished until it asks the database.
    """
    backend = current_app.backend
    backend.always_retry, backend.max_retries = True, RESULT_RETRIES


def _status(error: ServerResponseError | TransportError) -> int:
    """The HTTP status of the answer; 503 (service unavailable) if there was no answer."""
    if isinstance(error, ServerResponseError):
        return error.response.status_code
    return HTTPStatus.SERVICE_UNAVAILABLE
