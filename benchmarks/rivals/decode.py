"""Decode every file of FOLDER with soundfile and discard the samples."""

import sys
from pathlib import Path

import soundfile

for path in sorted(each for each in Path(sys.argv[1]).rglob("*") if each.is_file()):
    soundfile.read(path, dtype="float32")
