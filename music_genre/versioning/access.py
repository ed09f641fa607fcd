"""The addresses at which versions are stored, and the credentials for these addresses."""

import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from music_genre.errors import InputError
from music_genre.store import addresses

S3: Final = "s3://"


@dataclass(frozen=True)
class Access:
    """A Git repository, the DVC remote that stores its data, and files with Git credentials.

    S3 credentials are not included. The S3 libraries look for them where Amazon's own tools do: in
    the environment, in a credentials file and in the machine's role.
    """

    git: str
    """Address of the repository; a local folder that is missing or empty becomes a repository."""
    remote: str
    """Address of the DVC remote: s3://bucket/folder or a local folder.

    If the repository does not use DVC yet, this address is written into it. If the repository
    already uses DVC, it names a remote of its own, and that remote is used instead.
    """
    credentials: Path | None = None
    """File with lines of the form https://user:token@host, for `git credential-store`."""
    key: Path | None = None
    """File with the private SSH key."""
    known_hosts: Path | None = None
    """File with the SSH keys of the repository's host."""

    def __post_init__(self) -> None:
        address = urllib.parse.urlsplit(self.git)
        if address.password or (address.username and address.scheme.startswith("http")):
            raise InputError(
                "the address of the Git repository contains a user name, password or token, which "
                "process lists would show; write these into the credentials file and give the "
                "address without them"
            )
        scheme, separator, _ = self.remote.partition("://")
        if separator and scheme != "s3":
            raise InputError(
                f"{self.remote}: not a supported DVC remote; give s3://bucket/folder or a folder"
            )
        if not separator:
            object.__setattr__(self, "remote", str(addresses.local_path(self.remote)))

    @property
    def local_git(self) -> Path | None:
        """The repository's path if it is a folder on this machine, else None."""
        is_url = "://" in self.git or (":" in self.git and not self.git.startswith("/"))
        return None if is_url else Path(self.git).absolute()
