"""Who may log in to Flower, and that Flower does not start without a login."""

import os
import subprocess
import sys
from base64 import b64encode
from types import SimpleNamespace

import pytest
from tornado.httputil import HTTPHeaders

from fleet.workers.flower import LOGIN_VARIABLE, is_allowed

LOGIN = "admin:a password"


def request(authorization: str | None) -> SimpleNamespace:
    given = {} if authorization is None else {"Authorization": authorization}
    return SimpleNamespace(headers=HTTPHeaders(given))


def basic(login: str) -> str:
    return "Basic " + b64encode(login.encode()).decode()


def test_the_login_opens():
    assert is_allowed(request(basic(LOGIN)), LOGIN)
    assert is_allowed(request(basic(LOGIN).replace("Basic", "basic")), LOGIN)


@pytest.mark.parametrize(
    "authorization",
    [
        *(None, "", "Basic", "Basic ", "Basic !!!", "Basic \u00e4", f"Bearer {LOGIN}"),
        *(basic("admin:"), basic("admin:wrong"), basic(LOGIN + " "), basic("a password"), LOGIN),
    ],
)
def test_nothing_else_opens(authorization):
    assert not is_allowed(request(authorization), LOGIN)


@pytest.mark.parametrize("login", ["", "admin", "admin:"])
def test_it_does_not_start_without_a_password(login):
    ended = subprocess.run(
        [sys.executable, "-m", "fleet", "flower"],
        env=os.environ | {LOGIN_VARIABLE: login},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr == f"error: {LOGIN_VARIABLE} is not set; set it to name:password\n"
