"""A fake S3 server. It gives answers that a real server cannot be made to give."""

import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HANG_UP = (0, "")
"""The connection is closed without an answer."""
SILENT = (-1, "")
"""The request is read but never answered."""
STOPPED = (-2, "")
"""The request's body is not read, and the request is never answered."""


ROLE, ROLE_TOKEN = "/role", "token-of-the-role"
"""The path that serves the credentials of the machine's role, and their session token."""


class Store:
    """The objects of the server, and the requests that it refuses."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        """Method -> status and error code of the refusal."""
        self.patience: dict[str, int] = {}
        """Method -> number of requests that are served before the refusals begin."""
        self.tokens: set[str] = set()
        """Session tokens of all requests; an empty string for a request without a token."""
        self.parts: dict[str, bytes] = {}
        """Parts of uploads that are not complete."""

    def refusal(self, method: str) -> tuple[int, str] | None:
        left = self.patience.get(method, 0)
        self.patience[method] = left - 1
        return self.refused.get(method) if left <= 0 else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_PUT(self) -> None:
        refused = self._refusal()
        data = b"" if refused == STOPPED else self._body()
        if not self._is_served(refused):
            return
        query = urllib.parse.urlsplit(self.path).query
        if "partNumber=" in query:  # parts can arrive in any order
            number = int(urllib.parse.parse_qs(query)["partNumber"][0])
            self.server.store.parts[f"{self._key} {number:05}"] = data
        else:
            self.server.store.objects[self._key] = data
        self._answer(200, b"", {"ETag": f'"{md5(data).hexdigest()}"'})

    def do_POST(self) -> None:
        self._body()
        if self._key not in self.server.store.objects and "uploads" in self.path:
            text = "<InitiateMultipartUploadResult><UploadId>1</UploadId>"
            self._answer(200, f"{text}</InitiateMultipartUploadResult>".encode(), {})
            return
        parts = self.server.store.parts
        names = sorted(name for name in parts if name.startswith(f"{self._key} "))
        self.server.store.objects[self._key] = b"".join(parts.pop(name) for name in names)
        text = "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        self._answer(200, text.encode(), {})

    def do_DELETE(self) -> None:
        self._answer(204, b"", {})

    def do_GET(self) -> None:
        if self._key == ROLE:
            self._hand_out()
            return
        if not self._is_served(self._refusal()):
            return
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        if "list-type" in query:
            self._list(query.get("prefix", [""])[0])
        elif self._key in self.server.store.objects:
            data = self.server.store.objects[self._key]
            now = formatdate(usegmt=True)
            self._answer(200, data, {"Last-Modified": now, "ETag": f'"{md5(data).hexdigest()}"'})
        else:
            self._refuse(404, "NoSuchKey")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _hand_out(self) -> None:
        credentials = {"AccessKeyId": "role", "SecretAccessKey": "secret", "Token": ROLE_TOKEN}
        text = json.dumps({**credentials, "Expiration": "2099-01-01T00:00:00Z"})
        self._answer(200, text.encode(), {"Content-Type": "application/json"})

    def _list(self, prefix: str) -> None:
        found = sorted(key for key in self.server.store.objects if key.startswith(f"/b/{prefix}"))
        rows = "".join(
            f"<Contents><Key>{key[3:]}</Key><Size>{len(self.server.store.objects[key])}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag></Contents>"
            for key in found
        )
        text = f"<ListBucketResult><KeyCount>{len(found)}</KeyCount>{rows}</ListBucketResult>"
        self._answer(200, text.encode(), {"Content-Type": "application/xml"})

    @property
    def _key(self) -> str:
        return urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _refusal(self) -> tuple[int, str] | None:
        self.server.store.tokens.add(self.headers.get("X-Amz-Security-Token", ""))
        return self.server.store.refusal(self.command)

    def _is_served(self, refused: tuple[int, str] | None) -> bool:
        if refused in {HANG_UP, SILENT, STOPPED}:
            if refused != HANG_UP:
                self.server.over.wait()
            self.close_connection = True
        elif refused:
            self._refuse(*refused)
        return not refused

    def _refuse(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
        self._answer(status, text.encode(), {"Content-Type": "application/xml"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    store: Store
    over: threading.Event


@contextmanager
def serving() -> Iterator[tuple[str, Store]]:
    """Serve on loopback; yields the address and the store."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.store, server.over = Store(), threading.Event()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server.store
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
