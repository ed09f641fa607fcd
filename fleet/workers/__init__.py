"""Our extensions of Airflow's Celery workers, their health checks, and Flower."""
