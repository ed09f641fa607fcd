"""Celery's settings, and the modules that extend a worker, one per topic.

Airflow imports this module, through `[celery] celery_config_options`, in every process that uses
Celery: the scheduler (which sends tasks), the workers and Flower.
"""

from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG

from fleet.workers import control, messages, slots, stopping

CONNECTED = (control, messages, slots, stopping)
"""Modules that connect to Celery's signals when they are imported."""

# The argument of a Celery task is Airflow's workload, which includes the task's token. Events show
# arguments to every listener, for example Flower. So events of sent tasks are switched off;
# `control` hides the arguments in other events and in answers to `inspect`.
# By default Celery stores in Redis that a task starts before it starts the task. If Redis does not
# answer in time, Celery reports the task as failed, although it never ran.
CELERY_CONFIG = {
    **DEFAULT_CELERY_CONFIG,
    "task_send_sent_event": False,
    "task_track_started": False,
}
