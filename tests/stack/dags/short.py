"""Twenty short tasks without retries: a task that is lost fails."""

import time

from airflow.sdk import DAG, task

with DAG("short", schedule=None, is_paused_upon_creation=False):

    @task(queue="cpu", retries=0)
    def short(number):
        time.sleep(3)
        return number

    short.expand(number=list(range(20)))
