"""A DAG whose author misspelt a queue."""

from airflow.sdk import DAG

from fleet.operators.command import CommandOperator

with DAG("misspelt", schedule=None):
    CommandOperator(task_id="train", queue="trianing", command=["music-genre", "device"])
