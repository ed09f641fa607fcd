"""What Celery's workers are and do beyond Celery."""
