"""Redelivered messages; the leases are tested on a real broker, in tests/embedded."""

import json
import time
from base64 import urlsafe_b64encode
from types import SimpleNamespace

import httpx
import pytest
from airflow.sdk.api.client import ServerResponseError
from celery.exceptions import Ignore, Reject

from fleet.workers import messages


def refusing(status: int):
    request = httpx.Request("PATCH", "http://webserver/execution/task-instances/1/run")
    response = httpx.Response(status, request=request)

    def run(workload: str) -> None:
        raise ServerResponseError("refused", request=request, response=response)

    return messages.unless_moot(run)


@pytest.mark.parametrize(
    ("again", "status", "raised"),
    [
        (True, 403, Ignore),
        (False, 403, ServerResponseError),
        (None, 403, ServerResponseError),
        (True, 500, Reject),
        (True, 503, Reject),
        (False, 500, ServerResponseError),
        (True, 404, Ignore),
        (True, 409, Ignore),
        (False, 404, ServerResponseError),
        (True, 422, ServerResponseError),
    ],
)
def test_a_message_that_comes_again_for_nothing_or_too_late_is_ignored(
    monkeypatch, again, status, raised
):
    request = SimpleNamespace(delivery_info={"redelivered": again})
    monkeypatch.setattr(messages, "current_task", SimpleNamespace(request=request))
    with pytest.raises(raised) as caught:
        refusing(status)("workload")
    assert raised is not Reject or caught.value.requeue


@pytest.mark.parametrize(
    ("again", "error", "raised"),
    [
        (True, httpx.ConnectError, Reject),
        (False, httpx.ConnectError, Reject),
        (False, httpx.ConnectTimeout, Reject),
        (True, httpx.ReadTimeout, Reject),
        (False, httpx.ReadTimeout, httpx.ReadTimeout),  # the webserver might have got the request
    ],
)
def test_a_message_that_the_webserver_cannot_have_heard_of_goes_back(
    monkeypatch, again, error, raised
):
    """Workers can be up before the webserver while a stack starts. No task may lose a try then."""

    def run() -> None:
        raise error("away")

    request = SimpleNamespace(delivery_info={"redelivered": again})
    monkeypatch.setattr(messages, "current_task", SimpleNamespace(request=request))
    with pytest.raises(raised) as caught:
        messages.unless_moot(run)()
    assert raised is not Reject or caught.value.requeue


def test_what_succeeds_is_left_alone():
    done = []
    messages.unless_moot(done.append)("workload")
    assert done == ["workload"]


def workload(expires_in: float) -> str:
    claims = urlsafe_b64encode(json.dumps({"exp": time.time() + expires_in}).encode()).decode()
    return json.dumps({"token": f"head.{claims.rstrip('=')}.signature"})


@pytest.mark.parametrize(
    ("message", "raised"),
    [
        (workload(-1), Ignore),
        (workload(170), ServerResponseError),
        ("{}", ServerResponseError),
        ("no JSON", ServerResponseError),
        ('{"token": "x"}', ServerResponseError),
    ],
)
def test_a_first_message_is_ignored_only_if_its_token_is_old(monkeypatch, message, raised):
    """The webserver also refuses a token that it did not sign; that must not stay hidden."""
    request = SimpleNamespace(delivery_info={"redelivered": False})
    monkeypatch.setattr(messages, "current_task", SimpleNamespace(request=request))
    with pytest.raises(raised):
        refusing(403)(message)
