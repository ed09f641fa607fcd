"""Celery's settings, and the modules that extend a worker, one per topic.

Airflow imports this module, through `[celery] celery_config_options`, in every process that uses
Celery: the scheduler, which sends tasks, the workers and Flower.
"""

from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG

from fleet.workers import control, messages, slots, stopping

CONNECTED = (control, messages, slots, stopping)
"""Modules that listen to Celery's signals."""

# A task's argument is its workload, including the token with which it reports as that task. Events
# and `inspect` answers carry arguments to every listener, for example Flower.
CELERY_CONFIG = {**DEFAULT_CELERY_CONFIG, "task_send_sent_event": False}
