"""Celery's settings. With them comes what a worker does beyond them, one module an idea.

Airflow imports this module, by `[celery] celery_config_options`, in every process that speaks to
Celery: the scheduler, which sends tasks, the workers and Flower.
"""

from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG

from fleet.workers import control, messages, slots, stopping

CONNECTED = (control, messages, slots, stopping)
"""Modules that listen to Celery's signals."""

# A task's argument is its workload, with the token that lets it report as that task. Events and
# the answers of `inspect` carry arguments to whoever listens, Flower to begin with.
CELERY_CONFIG = {**DEFAULT_CELERY_CONFIG, "task_send_sent_event": False}
