"""Test an S3 remote before any work starts, and report each S3 error in one line."""

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
"""Key of the test object. It is never deleted, so that no delete permission is needed."""
SECONDS: Final = 10
"""Time-out in seconds, for a connection and for an answer."""
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
REMEDIES: Final = {
    "NoSuchBucket": "there is no such bucket; create it, or correct the address",
    "InvalidAccessKeyId": f"the service does not know the access key; correct {_KEYS}",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key; correct "
    "AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": f"the session token has expired; set a new AWS_SESSION_TOKEN, {_KEYS}",
    "InvalidToken": f"the session token is not valid; correct AWS_SESSION_TOKEN, {_KEYS}",
    "AuthorizationHeaderMalformed": "the bucket is in another region; correct AWS_DEFAULT_REGION",
    "PermanentRedirect": "the bucket is in another region; correct AWS_DEFAULT_REGION",
    "RequestTimeTooSkewed": "this machine's clock differs from the service's; set the clock",
    "AccessDenied": "the credentials lack permission; allow s3:ListBucket, s3:GetObject and "
    "s3:PutObject below that address",
}
"""The service's error code -> what is wrong, and how to fix it."""
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
"""Other error code -> the code in `REMEDIES` that means the same."""


ERRORS: Final = (BotoCoreError, ClientError, ClientPayloadError)
"""Botocore's errors, and aiohttp's error for a truncated answer, which botocore does not wrap."""
_SILENCE: Final = (
    *(NoConnectionError, HTTPClientError, ClientPayloadError),
    *(ConnectionError, TimeoutError),
)


def be_compatible() -> None:
    """Make S3 clients retry once, and send checksums only if the service requires them.

    Services other than Amazon's might refuse checksums. This function sets environment variables,
    which a client reads when it is created. On top of botocore's single retry, s3fs tries each
    request five times.

    Source: the release notes of botocore 1.36; s3fs.core.S3FileSystem.retries.
    """
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "2")
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        os.environ.setdefault(name, "when_required")


def probe(remote: str, *, write: bool) -> None:
    """Test a remote with the requests that a pull (list) or a push (list, write, read) makes.

    Args:
        remote: s3://bucket/folder.
        write: true tests the requests of a push, false the requests of a pull.

    Raises:
        InputError: credentials, bucket or permissions are wrong.
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
    """Turn S3 errors into errors of this package."""
    try:
        yield
    except (*ERRORS, ValueError) as error:
        raise in_words(what, error) from None


def is_its(error: BaseException) -> bool:
    """Tell whether S3 or the connection caused an error, rather than this machine's storage."""
    return any(isinstance(cause, (*ERRORS, *_SILENCE)) for cause in _causes(error))


def is_silence(error: BaseException) -> bool:
    """Tell whether an error means that S3 was not reached or did not finish its answer."""
    causes = list(_causes(error))
    answered = any(isinstance(cause, ClientError) for cause in causes)
    return not answered and any(isinstance(cause, _SILENCE) for cause in causes)


def in_words(what: str, error: BaseException) -> MusicGenreError:
    """Explain an S3 error in one line that contains no secret.

    Args:
        what: the address and the operation.
        error: an error of botocore, or an error that was caused by an error of botocore.

    Returns:
        The error to raise.
    """
    for cause in _causes(error):
        if isinstance(cause, ClientError):
            return _of_service(what, cause)
        if isinstance(cause, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
            return InputError(
                f"{what}: no credentials were found; set {_KEYS} or AWS_SHARED_CREDENTIALS_FILE "
                "(in the stack's .env: AWS_CREDENTIALS_FILE), or use a machine that has an IAM role"
            )
        if isinstance(cause, SSLError):
            return InputError(
                f"{what}: this machine does not trust the service's certificate; set AWS_CA_BUNDLE"
            )
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
        return TemporaryError(f"{what}: the service reports a problem (answer: {code}); try again")
    return InputError(
        f"{what}: refused with {code}; look up this code in the service's documentation"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()  # a re-raised exception can be its own cause, which would loop for ever
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
