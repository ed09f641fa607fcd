"""Flower with a login for everything: every page, the API, `/metrics` and static files.

Flower 2.2 by itself serves `/metrics`, `/healthcheck` and static files without a login (tested).
"""

import hmac
import os
import sys
from base64 import b64decode
from typing import Any

import tornado.httputil
import tornado.web
from flower.app import Flower

LOGIN_VARIABLE = "AIRFLOW__CELERY__FLOWER_BASIC_AUTH"


class Refusal(tornado.web.RequestHandler):
    """Gets only requests that lack the login, and refuses all of them with status 401."""

    def check_xsrf_cookie(self) -> None:
        """Skip the check: this handler refuses every request, so a forged request does no harm."""

    def prepare(self) -> None:
        """Refuse the request and ask for the login."""
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.finish("Access denied")


def is_allowed(request: tornado.httputil.HTTPServerRequest, login: str) -> bool:
    """Whether a request carries the login, `name:password`, as basic authentication."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    try:
        decoded = b64decode(given, validate=True)
    except ValueError:
        return False
    return scheme.lower() == "basic" and hmac.compare_digest(decoded, login.encode())


def run_flower(*words: str) -> None:
    """Serve Flower in this process, with the options of `airflow celery flower`.

    Raises:
        SystemExit: no login is set.
    """
    login = os.environ.get(LOGIN_VARIABLE, "")
    if not login.partition(":")[2]:
        raise SystemExit(f"error: {LOGIN_VARIABLE} is not set; set it to name:password")
    find_handler = Flower.find_handler

    def find_allowed(app: Flower, request: Any, **options: Any) -> Any:
        if is_allowed(request, login):
            return find_handler(app, request, **options)
        return app.get_handler_delegate(request, Refusal)

    Flower.find_handler = find_allowed
    from airflow.__main__ import main

    sys.argv = ["airflow", "celery", "flower", *words]
    main()
