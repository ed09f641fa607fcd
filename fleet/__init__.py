"""The part of the project that runs on Airflow: the queue contract, the operators, the workers."""
