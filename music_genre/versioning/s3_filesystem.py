"""DVC's file system for S3, which gives up if S3 stops answering during a transfer.

Without this module, the libraries wait for ever or for very long in three cases (aiohttp 3.14,
s3fs 2026.9):

- Before a request sends its body, it asks S3 for permission (Expect: 100-continue), and waits for
  the answer without a timeout.
- aiohttp's `sock_read` timeout starts only after the body is sent, so sending has no timeout.
- After one file has failed, DVC still tries every other file, each with all retries.
"""

import socket
import threading
import time
from typing import Any, Final

import aiobotocore.session
import dvc_s3
import s3fs
from botocore.handlers import add_expect_header
from dvc.utils.objects import cached_property
from funcy import wrap_prop

from music_genre.versioning import s3

SECONDS: Final = 20
"""Seconds for which S3 can be silent before a request is tried again.

A request that S3 accepted is tried ten times: s3fs tries it five times, and each time botocore
makes two attempts. A request that could not be sent is tried twice, by botocore only.

Source: AWS_MAX_ATTEMPTS in `s3.be_compatible`; s3fs.core.S3_RETRYABLE_ERRORS.
"""


class _Transfers(s3fs.S3FileSystem):  # type: ignore[misc] # it has no types
    """s3fs's file system, but after S3 was silent for `SECONDS`, further requests fail at once."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._answered = time.monotonic()
        self._silence: BaseException | None = None

    async def _call_s3(self, *args: Any, **kwargs: Any) -> Any:
        self._raise_if_silent()
        try:
            answer = await super()._call_s3(*args, **kwargs)
        except Exception as error:
            if not s3.is_silence(error):
                self._answered = time.monotonic()
            elif time.monotonic() - self._answered >= SECONDS:
                self._silence = error
            raise
        self._answered = time.monotonic()
        return answer

    async def _put_file(self, *args: Any, **kwargs: Any) -> None:
        self._raise_if_silent()  # fail before the file is read
        await super()._put_file(*args, **kwargs)

    def _raise_if_silent(self) -> None:
        if self._silence:
            # A traceback would keep the data of the failed transfer in memory.
            raise self._silence.with_traceback(None)


class S3FileSystem(dvc_s3.S3FileSystem):  # type: ignore[misc] # it has no types
    """Replaces DVC's own S3 file system in `dvc.fs.known_implementations`."""

    @wrap_prop(threading.Lock())  # type: ignore[untyped-decorator]
    @cached_property  # type: ignore[untyped-decorator]
    def fs(self) -> _Transfers:
        """The connected file system, which all threads share."""
        filesystem = _Transfers(**self.fs_args)
        filesystem.connect()
        return filesystem

    def _prepare_credentials(self, **config: Any) -> dict[str, Any]:
        config |= {"read_timeout": SECONDS, "connect_timeout": SECONDS}
        arguments: dict[str, Any] = super()._prepare_credentials(**config)
        arguments["config_kwargs"]["connector_args"] = {"socket_factory": _connection}
        session = aiobotocore.session.AioSession(profile=arguments.get("profile"))
        session.unregister("before-call.s3", add_expect_header)
        return {**arguments, "session": session}


def _connection(address: tuple[Any, ...]) -> socket.socket:
    """Make a socket that fails if the peer accepts no data for `SECONDS`.

    Since Linux 5.11 it also fails if the peer is alive but has stopped reading (a closed window).

    Source: tcp(7), TCP_USER_TIMEOUT.
    """
    made = socket.socket(*address[:3])
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # only on Linux
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(SECONDS * 1000))
    return made
