"""The Airflow side: the queue contract, the operators, the workers."""
