"""DVC's way to S3, with an end where S3 falls silent in the middle of a transfer.

Three things of the libraries would else wait for ever, or nearly (aiohttp 3.14, s3fs 2026.9):

- A request with a body first asks whether it may send it, and waits for the answer without a bound.
- aiohttp's `sock_read` begins when the body is sent, so nothing bounds the sending.
- DVC tries every other file when one has failed, each with all its retries.
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
"""How long S3 may be silent before it is asked again: ten times in all where it took the request,
else twice.

Source: AWS_MAX_ATTEMPTS in `s3.be_compatible`, and s3fs.core.S3_RETRYABLE_ERRORS on top of it.
"""


class _Transfers(s3fs.S3FileSystem):  # type: ignore[misc] # it has no types
    """s3fs's, which asks no more when a request has failed and none was answered for `SECONDS`."""

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
        self._raise_if_silent()  # before it reads the file
        await super()._put_file(*args, **kwargs)

    def _raise_if_silent(self) -> None:
        if self._silence:
            raise self._silence.with_traceback(None)  # which would keep what each has read


class S3FileSystem(dvc_s3.S3FileSystem):  # type: ignore[misc] # it has no types
    """DVC's, whose place it takes in `dvc.fs.known_implementations`."""

    @wrap_prop(threading.Lock())  # type: ignore[untyped-decorator]
    @cached_property  # type: ignore[untyped-decorator]
    def fs(self) -> _Transfers:
        """Connect, once for all threads."""
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
    """Make a socket that ends where what it sends is not taken for so long.

    Also where the other side lives and has only stopped reading: tcp(7), TCP_USER_TIMEOUT; for a
    closed window since Linux 5.11.
    """
    made = socket.socket(*address[:3])
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux alone
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(SECONDS * 1000))
    return made
