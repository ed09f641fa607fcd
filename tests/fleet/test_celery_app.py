"""What a worker does beyond Celery's defaults, where no broker is needed."""

from celery.worker.control import Panel

from fleet import celery_app


def test_a_worker_knows_no_order_but_those_that_were_looked_at():
    assert set(Panel.data) == celery_app.ALLOWED | {"slots"}
    assert not {"election", "pool_grow", "add_consumer", "rate_limit"} & celery_app.ALLOWED
