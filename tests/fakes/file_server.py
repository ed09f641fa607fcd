"""An HTTP server for one file. It breaks connections off, as servers of large files do."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Plan:
    """The file to serve, the faults to make, and the requests that came."""

    def __init__(self, contents: bytes) -> None:
        self.contents = contents
        self.cuts: list[int] = []
        """For each of the next requests: the number of bytes after which the answer is cut off."""
        self.statuses: list[int] = []
        """For each of the next requests: the status code with which the server refuses it."""
        self.knows_ranges = True
        self.starts: list[int] = []
        """For each request: the offset of the first byte that was sent."""


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"

    def do_GET(self) -> None:
        plan = self.server.plan
        if plan.statuses:
            self.send_error(plan.statuses.pop(0))
            return
        given = self.headers.get("Range", "bytes=0-") if plan.knows_ranges else "bytes=0-"
        start = int(given.removeprefix("bytes=").rstrip("-"))
        plan.starts.append(start)
        size = len(plan.contents)
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        sent = plan.contents[start:]
        self.wfile.write(sent[: plan.cuts.pop(0)] if plan.cuts else sent)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    plan: Plan


@contextmanager
def serving(contents: bytes) -> Iterator[tuple[str, Plan]]:
    """Serve the contents on loopback; yields the server's address, and the plan."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.plan = Plan(contents)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server.plan
        finally:
            server.shutdown()
            thread.join()
