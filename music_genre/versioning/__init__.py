"""Data and models under version control: bytes in a DVC remote, descriptions in Git.

The only package that uses DVC and Git.
"""

from music_genre.versioning.access import Access
from music_genre.versioning.data import check, publish_data, pull
from music_genre.versioning.model import publish_run

__all__ = ["Access", "check", "publish_data", "publish_run", "pull"]
