"""Try an S3 before any work, and say in one line what is wrong with it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import botocore.session
from aiohttp import ClientPayloadError
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)
from botocore.exceptions import ConnectionError as NoConnectionError

from music_genre.errors import InputError, MusicGenreError, TemporaryError

PROBE: Final = ".music-genre-probe"
"""Key of the object that is written, read and left, so that no right to delete is asked for."""
SECONDS: Final = 10
"""How long an answer is waited for."""
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
REMEDIES: Final = {
    "NoSuchBucket": "there is no such bucket; make it, or mend the address",
    "InvalidAccessKeyId": f"the access key is unknown there; mend {_KEYS}",
    "SignatureDoesNotMatch": "the secret key is not that of the access key; mend "
    "AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": f"the session token has expired; get a new one: AWS_SESSION_TOKEN, {_KEYS}",
    "InvalidToken": f"the session token is not valid; mend AWS_SESSION_TOKEN, {_KEYS}",
    "AuthorizationHeaderMalformed": "the bucket is in another region; mend AWS_DEFAULT_REGION",
    "PermanentRedirect": "the bucket is in another region; mend AWS_DEFAULT_REGION",
    "RequestTimeTooSkewed": "this machine's clock differs from the service's; set it",
    "AccessDenied": "the credentials may not do it; allow s3:ListBucket, s3:GetObject and "
    "s3:PutObject below that address",
}
"""The service's code of an error -> what is wrong, and what mends it."""
SAME: Final = {
    "ExpiredTokenException": "ExpiredToken",
    "TokenRefreshRequired": "ExpiredToken",
    "RequestExpired": "ExpiredToken",
    "404": "NoSuchBucket",
    "403": "AccessDenied",
    "AllAccessDisabled": "AccessDenied",
    "InvalidClientTokenId": "InvalidAccessKeyId",
    "IllegalLocationConstraintException": "AuthorizationHeaderMalformed",
}
"""Other codes of the same faults."""


ERRORS: Final = (BotoCoreError, ClientError, ClientPayloadError)
"""What botocore raises, and aiohttp where an answer broke off, which nothing translates."""
_SILENCE: Final = (
    *(NoConnectionError, HTTPClientError, ClientPayloadError),
    *(ConnectionError, TimeoutError),
)


def be_compatible() -> None:
    """Send checksums only where a service asks, for others than Amazon's refuse them; retry once.

    Read when a client is made; s3fs tries five times on top of it. Source: the release notes of
    botocore 1.36; s3fs.core.S3FileSystem.retries.
    """
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "2")
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        os.environ.setdefault(name, "when_required")


def probe(remote: str, *, write: bool) -> None:
    """List at a remote as a pull will, or list, write and read as a push will.

    Args:
        remote: s3://bucket/folder.
        write: whether there is something to push.

    Raises:
        InputError: credentials, bucket or rights are not as they must be.
        TemporaryError: the service does not answer.
    """
    be_compatible()
    bucket, _, folder = remote.removeprefix("s3://").partition("/")
    key = f"{folder.strip('/')}/{PROBE}".lstrip("/")
    settings = Config(
        connect_timeout=SECONDS, read_timeout=SECONDS, retries={"total_max_attempts": 2}
    )
    with faults(remote):
        client: Any = botocore.session.get_session().create_client("s3", config=settings)
        with faults(f"{remote}: listing"):
            client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        if not write:
            return
        with faults(f"{remote}: writing"):
            client.put_object(Bucket=bucket, Key=key, Body=b"")
        with faults(f"{remote}: reading"):
            client.get_object(Bucket=bucket, Key=key)["Body"].close()


@contextmanager
def faults(what: str) -> Iterator[None]:
    """Turn what botocore raises into this package's errors."""
    try:
        yield
    except (*ERRORS, ValueError) as error:
        raise in_words(what, error) from None


def is_its(error: BaseException) -> bool:
    """Tell an error of S3's, or of the way there, from one of this machine's storage."""
    return any(isinstance(cause, (*ERRORS, *_SILENCE)) for cause in _causes(error))


def is_silence(error: BaseException) -> bool:
    """Tell whether S3 was not reached, or did not answer to the end."""
    causes = list(_causes(error))
    answered = any(isinstance(cause, ClientError) for cause in causes)
    return not answered and any(isinstance(cause, _SILENCE) for cause in causes)


def in_words(what: str, error: BaseException) -> MusicGenreError:
    """Say in one line what an error of S3's means, without anything secret.

    Args:
        what: address, and what was being done.
        error: botocore's, or one that it is the cause of.

    Returns:
        The error to raise.
    """
    for cause in _causes(error):
        if isinstance(cause, ClientError):
            return _of_service(what, cause)
        if isinstance(cause, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
            return InputError(
                f"{what}: no credentials were found; set {_KEYS}, give AWS_CREDENTIALS_FILE, or "
                "run where the machine has a role"
            )
        if isinstance(cause, SSLError):
            return InputError(f"{what}: its certificate is not trusted here; set AWS_CA_BUNDLE")
        if isinstance(cause, _SILENCE):
            where = os.environ.get("AWS_ENDPOINT_URL") or "Amazon's S3"
            return TemporaryError(
                f"{what}: {where} does not answer; check the network and AWS_ENDPOINT_URL"
            )
    last = " ".join(str(error).split()) or type(error).__name__
    kind = TemporaryError if isinstance(error, OSError) else InputError
    return kind(f"{what}: {last[:200]}; check the address and AWS_ENDPOINT_URL")


def _of_service(what: str, error: ClientError) -> MusicGenreError:
    code = str(error.response.get("Error", {}).get("Code", "unknown"))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    known = REMEDIES.get(SAME.get(code, code))
    if known:
        return InputError(f"{what}: {known} (answer: {code})")
    if status >= 500 or code in {"SlowDown", "RequestTimeout", "Throttling"}:
        return TemporaryError(f"{what}: the service is in trouble (answer: {code}); try again")
    return InputError(f"{what}: refused with {code}; see the service's documentation of it")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()  # one exception raised in several places may be its own cause
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
