"""A client for the parts of Airflow's and Flower's REST APIs that `deploy` uses."""

import base64
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from deploy.errors import DeployError

TIMEOUT_SECONDS = 20.0


class AirflowApi:
    """A client of Airflow's stable REST API (v2), logged in as one user.

    Args:
        address: Airflow's address, such as `http://127.0.0.1:8080`.
    """

    def __init__(self, address: str, username: str, password: str) -> None:
        self._address = address
        self._login = {"username": username, "password": password}
        self._token = ""

    def health(self) -> dict[str, str]:
        """The status of each component: `healthy`, `unhealthy`, or None if it never ran.

        Raises:
            OSError: the api-server does not answer yet.
        """
        answer = _call(f"{self._address}/api/v2/monitor/health")
        return {name: part["status"] for name, part in answer.items()}

    def warm_up(self) -> None:
        """Call the API for workers once, so that the api-server builds it before a worker calls it.

        The api-server builds this API only at the first call. Building it took 5.6 s on two cores,
        but by default a worker waits only 5 s for an answer.

        Raises:
            OSError: the api-server does not answer yet.
        """
        _call(f"{self._address}/execution/health")

    def get(self, path: str) -> Any:
        """GET a resource below `/api/v2/`.

        Raises:
            DeployError: the request was refused; the message has the status and the reason.
            OSError: there was no answer, an incomplete answer or a server error (5xx).
        """
        return self._authorised(path, None)

    def exists(self, path: str) -> bool:
        """Whether a resource exists."""
        try:
            self.get(path)
        except NotFoundError:
            return False
        return True

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST a JSON body to a resource below `/api/v2/`; raises the same errors as `get`."""
        return self._authorised(path, body)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        """PATCH a resource below `/api/v2/`; raises the same errors as `get`."""
        return self._authorised(path, body, "PATCH")

    def _authorised(self, path: str, body: dict[str, Any] | None, method: str = "") -> Any:
        if not self._token:
            self._token = _call(f"{self._address}/auth/token", self._login)["access_token"]
        headers = {"Authorization": f"Bearer {self._token}"}
        return _call(f"{self._address}/api/v2/{path}", body, headers, method)


class NotFoundError(DeployError):
    """The resource does not exist (404)."""


class ConflictError(DeployError):
    """The resource already exists (409)."""


def online_workers(address: str, username: str, password: str) -> set[str]:
    """Names of the Celery workers that Flower sees online, such as `gpu@host`.

    Raises:
        OSError: Flower does not answer yet.
    """
    login = base64.b64encode(f"{username}:{password}".encode()).decode()
    url = f"{address}/api/workers?status=true"
    workers = _call(url, headers={"Authorization": f"Basic {login}"})
    return {name for name, is_online in workers.items() if is_online}


def path(*parts: object) -> str:
    """URL-quote the parts of a resource's path and join them with slashes."""
    return "/".join(urllib.parse.quote(str(part), safe="~") for part in parts)


def _call(
    url: str,
    body: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    method: str = "",
) -> Any:
    data = None if body is None else json.dumps(body).encode()
    fields = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data, fields, method=method or None)
    try:
        with _opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            reason = error.read(500).decode(errors="replace")
        if error.code >= 500:
            raise ConnectionError(f"{url} answered {error.code} {reason}") from error
        kind = _REFUSALS.get(error.code, DeployError)
        raise kind(f"{request.get_method()} {url} was refused: {error.code} {reason}") from error
    except (http.client.HTTPException, ValueError) as error:
        raise ConnectionError(f"{url} gave an incomplete answer: {error!r}") from error


_REFUSALS: dict[int, type[DeployError]] = {404: NotFoundError, 409: ConflictError}


# All addresses are on loopback, so requests never use a proxy, even if the environment names one.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
