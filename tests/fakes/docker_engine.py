"""A Docker engine that misbehaves: it cuts log streams off and refuses requests."""

import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

CUT = b"cut"
VERSION = {"ApiVersion": "1.41", "Version": "20.10.0", "MinAPIVersion": "1.12"}


@dataclass
class Engine:
    """The engine's scripted answers, and the requests that it got."""

    streams: list[list[bytes] | int]
    """The answers to requests for logs, in turn; the last one is repeated. An answer is a list of
    entries `stamp text`, or the status code of a refusal. An answer that ends with `CUT` breaks
    off there."""
    exit_code: int | None = 0
    """The container's exit code after the last stream; None: the container never ends."""
    address: str = ""
    asked: list[dict[str, list[str]]] = field(default_factory=list)
    """The queries of all requests for logs."""

    def inspected(self) -> dict[str, Any]:
        ended = len(self.asked) >= len(self.streams) and self.exit_code is not None
        state = {"Running": not ended, "ExitCode": self.exit_code or 0}
        return {"State": state, "Config": {"Tty": False}}


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"

    def do_GET(self) -> None:
        engine, url = self.server.engine, urlsplit(self.path)
        if url.path.endswith("/logs"):
            engine.asked.append(parse_qs(url.query))
            self._stream(engine.streams[min(len(engine.asked), len(engine.streams)) - 1])
        elif url.path.endswith("/_ping"):
            self._answer(200, b"OK")
        else:
            known = url.path.endswith("/json")
            self._answer(200, json.dumps(engine.inspected() if known else VERSION).encode())

    def _stream(self, entries: list[bytes] | int) -> None:
        if isinstance(entries, int):
            self._answer(entries, b'{"message": "no server is available"}')
            return
        frames = [struct.pack(">BxxxL", 1, len(entry)) + entry for entry in entries]
        cut = entries[-1:] == [CUT]
        self._answer(200, b"".join(frames[:-1]) + frames[-1][:5] if cut else b"".join(frames))

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    engine: Engine


@contextmanager
def misbehaving(engine: Engine) -> Iterator[Engine]:
    """Serve the engine on loopback; sets `engine.address`."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.engine = engine
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        engine.address = f"tcp://127.0.0.1:{server.server_port}"
        yield engine
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
