"""What our Celery workers do beyond plain Celery."""
