"""The secrets of `.env`: how each is generated, and which values are refused."""

import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping


def _password() -> str:
    return secrets.token_urlsafe(24)


def _fernet_key() -> str:
    return urlsafe_b64encode(secrets.token_bytes(32)).decode()


SECRETS: Mapping[str, Callable[[], str]] = {
    "POSTGRES_SUPERUSER_PASSWORD": _password,
    "POSTGRES_PASSWORD": _password,
    "REDIS_SCHEDULER_PASSWORD": _password,
    "REDIS_WORKER_PASSWORD": _password,
    "REDIS_FLOWER_PASSWORD": _password,
    "REDIS_HOUSEKEEPER_PASSWORD": _password,
    "ADMIN_PASSWORD": _password,
    "FLOWER_PASSWORD": _password,
    "JWT_SECRET": lambda: secrets.token_urlsafe(64),
    "API_SECRET_KEY": _password,
    "FERNET_KEY": _fernet_key,
    "S3_SECRET_KEY": _password,
}
BOUND_TO_DATA = {"POSTGRES_PASSWORD", "ADMIN_PASSWORD", "FERNET_KEY"}
"""Secrets that must not change once the database exists: its logins and encrypted data depend on
them."""
LEAST_CHARACTERS = 16
LEAST_OF_JWT_SECRET = 64
"""HS512 requires a key of 64 bytes (RFC 7518, section 3.2)."""
_SAFE = re.compile(r"[A-Za-z0-9_=.~-]*")
_PLACEHOLDER = re.compile(r"change.?me|password|secret|placeholder|example|x{6}", re.IGNORECASE)


def draw(name: str) -> str:
    """Generate a secret; try again if it happens to contain a word that `fault_of` refuses."""
    while fault_of(name, value := SECRETS[name]()):
        pass
    return value


def fault_of(name: str, value: str) -> str:
    """Describe what is wrong with a secret, without showing it; empty if it is usable."""
    least = LEAST_OF_JWT_SECRET if name == "JWT_SECRET" else LEAST_CHARACTERS
    if not value:
        return "is empty"
    if len(value) < least:
        return f"has {len(value)} characters, fewer than {least}"
    if name == "FERNET_KEY":
        return _fernet_fault(value)
    if not _SAFE.fullmatch(value):
        return "has characters that are not safe in a URL (allowed: A-Z a-z 0-9 _ = . ~ -)"
    if word := _PLACEHOLDER.search(value):
        return f"is a placeholder: it contains {word[0]!r}"
    return ""


def _fernet_fault(value: str) -> str:
    """Describe what is wrong with a Fernet key, or a list of new and old keys; empty if usable."""
    if not all(map(_is_fernet_key, value.split(","))):
        return "is neither a key of 32 bytes in URL-safe base64 nor a comma-separated list of them"
    return ""


def _is_fernet_key(value: str) -> bool:
    try:
        return len(urlsafe_b64decode(value)) == 32
    except ValueError:
        return False
