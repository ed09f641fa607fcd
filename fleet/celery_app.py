"""Old location of Celery's settings, kept for one release; now `fleet.workers.celery_app`."""

from fleet.workers.celery_app import CELERY_CONFIG

__all__ = ["CELERY_CONFIG"]
