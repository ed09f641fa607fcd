"""Celery's settings, and the modules that extend a worker, one per topic.

Airflow imports this module, through `[celery] celery_config_options`, in every process that uses
Celery: the scheduler (which sends tasks), the workers and Flower.
"""

from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG

from fleet.workers import control, messages, slots, stopping

CONNECTED = (control, messages, slots, stopping)
"""Modules that connect to Celery's signals when they are imported."""

# The scheduler asks Redis for results in its main loop. If Redis does not answer, the loop waits
# for `redis_socket_timeout`. Celery's default of 120 s is too long.
_TIME_OUTS = {"redis_socket_timeout": 5.0, "redis_socket_connect_timeout": 5.0}

# The argument of a Celery task is Airflow's workload, which includes the task's token. Events show
# arguments to every listener, for example Flower. So events of sent tasks are switched off;
# `control` hides the arguments in other events and in answers to `inspect`.
CELERY_CONFIG = {**DEFAULT_CELERY_CONFIG, **_TIME_OUTS, "task_send_sent_event": False}
