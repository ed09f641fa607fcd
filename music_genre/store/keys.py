"""Content keys and checksums: names derived from contents."""

import hashlib
import json
from pathlib import Path
from typing import Any


def content_key(*parts: Any) -> str:
    """Return the content key of the parts: 12 hex digits of BLAKE2b of their canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode("ascii"), digest_size=6).hexdigest()


def file_checksum(path: Path) -> str:
    """Hash a file's bytes: 32 hexadecimal digits of BLAKE2b."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
