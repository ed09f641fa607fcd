"""Version control of data and models: DVC stores their bytes, Git stores their descriptions.

Within music_genre, only this package uses DVC and Git.
"""

from music_genre.versioning.access import Access
from music_genre.versioning.data import check, publish_data, pull
from music_genre.versioning.model import publish_run

__all__ = ["Access", "check", "publish_data", "publish_run", "pull"]
