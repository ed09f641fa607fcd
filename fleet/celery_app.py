"""The old address of Celery's settings, for one release: `fleet.workers.celery_app`."""

from fleet.workers.celery_app import CELERY_CONFIG

__all__ = ["CELERY_CONFIG"]
