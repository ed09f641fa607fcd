"""Remote control of workers: allow some commands, and hide tasks' arguments in the answers."""

import os
from typing import Any

from celery import signals
from celery.worker.control import Panel, inspect_command
from celery.worker.request import Request

from fleet.workers.gpus import SLOTS_VARIABLE, slot_gpus

# Remote control may inspect a worker, switch events on and off, end a task or a worker, and make a
# worker take no more tasks from a queue (`airflow celery remove-all-queues`, to drain the worker).
# Commands that add queues or change slots are removed, because the contract sets queues and slots.
# `election` is removed too, because it can make a worker send tasks.
ALLOWED = {
    *("active", "active_queues", "clock", "conf", "hello", "ping", "query_task", "registered"),
    *("report", "reserved", "revoked", "scheduled", "stats"),
    *("disable_events", "enable_events", "heartbeat", "revoke", "shutdown", "terminate"),
    "cancel_consumer",
}
for name in Panel.data.keys() - ALLOWED:
    del Panel.data[name]


@signals.before_task_publish.connect
def hide_arguments(headers: dict[str, Any], **_: Any) -> None:
    """Replace the text of a task's arguments in events with a placeholder."""
    headers["argsrepr"] = headers["kwargsrepr"] = "hidden"


@signals.worker_init.connect
def hide_arguments_from_inspect(**_: Any) -> None:
    """Make `inspect active` and similar commands show the placeholder, not the arguments."""
    info = Request.info
    Request.info = lambda request, **_: info(request, safe=True)


@inspect_command()
def slots(state: Any) -> dict[str, Any]:
    """Return the number of this worker's slots, and the UUIDs of the slots' GPUs.

    A worker that was told to take no more tasks has no slots.
    """
    if not state.consumer.task_consumer.queues:
        return {"slots": 0, "gpus": []}
    return {"slots": int(os.environ[SLOTS_VARIABLE]), "gpus": slot_gpus()}
