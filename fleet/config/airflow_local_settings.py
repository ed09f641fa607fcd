"""Where Airflow looks for cluster policies; ours are in `fleet/policy.py`."""

from fleet.policy import task_instance_mutation_hook, task_policy

__all__ = ["task_instance_mutation_hook", "task_policy"]
