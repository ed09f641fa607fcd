"""The part that runs on Airflow: the queue contract, the operators, the workers."""
