"""The command line, which has one command per stage.

A stage prints its result as one JSON line, and an error as one line of text. Stages are imported
inside their commands, so that --help does not load torch.
"""

from music_genre.cli.check import check
from music_genre.cli.fetch import fetch
from music_genre.cli.first_names import (
    create_image_features_from_audio,
    train_using_image_features,
)
from music_genre.cli.group import commands
from music_genre.cli.stages import device, evaluate, extract, predict, scan, split, train
from music_genre.cli.versions import publish, pull

__all__ = ["commands"]

for _command in (fetch, check, pull, scan, extract, split):  # the data flow
    commands.add_command(_command)
for _command in (train, evaluate, publish):
    commands.add_command(_command)
for _command in (predict, device):
    commands.add_command(_command)
for _command in (create_image_features_from_audio, train_using_image_features):
    commands.add_command(_command)
