"""What a worker does beyond Celery's defaults, where no broker is needed."""

from types import SimpleNamespace

import httpx
import pytest
from airflow.sdk.api.client import ServerResponseError
from celery.exceptions import Ignore, Reject
from celery.worker.control import Panel

from fleet import celery_app


def refusing(status: int):
    request = httpx.Request("PATCH", "http://webserver/execution/task-instances/1/run")
    response = httpx.Response(status, request=request)

    def run(workload: str) -> None:
        raise ServerResponseError("refused", request=request, response=response)

    return celery_app.unless_late(run)


@pytest.mark.parametrize(
    ("again", "status", "raised"),
    [
        (True, 403, Ignore),
        (False, 403, ServerResponseError),
        (None, 403, ServerResponseError),
        (True, 500, Reject),
        (True, 503, Reject),
        (False, 500, ServerResponseError),
        (True, 404, ServerResponseError),
    ],
)
def test_only_a_message_that_comes_again_without_a_valid_token_is_ignored(
    monkeypatch, again, status, raised
):
    request = SimpleNamespace(delivery_info={"redelivered": again})
    monkeypatch.setattr(celery_app, "current_task", SimpleNamespace(request=request))
    with pytest.raises(raised) as caught:
        refusing(status)("workload")
    assert raised is not Reject or caught.value.requeue


def test_a_message_that_comes_again_while_the_webserver_is_away_goes_back(monkeypatch):
    def run() -> None:
        raise httpx.ConnectError("refused")

    for again, raised in ((True, Reject), (False, httpx.ConnectError)):
        request = SimpleNamespace(delivery_info={"redelivered": again})
        monkeypatch.setattr(celery_app, "current_task", SimpleNamespace(request=request))
        with pytest.raises(raised):
            celery_app.unless_late(run)()


def test_what_succeeds_is_left_alone():
    done = []
    celery_app.unless_late(done.append)("workload")
    assert done == ["workload"]


def test_a_worker_knows_no_order_but_those_that_were_looked_at():
    assert set(Panel.data) == celery_app.ALLOWED | {"slots"}
    assert not {"election", "pool_grow", "add_consumer", "rate_limit"} & celery_app.ALLOWED
