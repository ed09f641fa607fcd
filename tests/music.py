"""A little of the demo music, for tests that need a training but no particular accuracy."""

import shutil
from pathlib import Path

DEMO_MUSIC = Path(__file__).parents[1] / "deploy" / "demo_music" / "genres_original"


def write_few_tracks(folder: Path, n_tracks: int = 8) -> Path:
    """Copy some tracks of each genre; one epoch on them takes one or two seconds of one core."""
    for genre in sorted(DEMO_MUSIC.iterdir()):
        (folder / genre.name).mkdir(parents=True)
        for track in sorted(genre.iterdir())[:n_tracks]:
            shutil.copy(track, folder / genre.name)
    return folder
