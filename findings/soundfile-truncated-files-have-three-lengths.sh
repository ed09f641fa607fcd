#!/usr/bin/env bash
# soundfile 0.14.0 (its wheel brings libsndfile 1.2.2), on music of 30 s of which a download that broke
# off left the first third.
#
# Behaviour: what `soundfile.info` calls the duration is what is there for WAV, AIFF, AU, W64, RF64 and
# Ogg, and what the header promises for FLAC and MP3. Then reading differs again: of the MP3 it
# returns what is there, without an error; of the FLAC it raises an error, and the samples before the
# cut are lost; the CAF cannot be opened at all. So neither is a duration proof of the samples, nor is
# a read without an error proof that nothing is missing.
#
# Output seen (Debian 12, Python 3.11, 2026-11-28); durations are rounded to seconds:
#   wav: info 10 s, read 10 s
#   aiff: info 10 s, read 10 s
#   au: info 10 s, read 10 s
#   w64: info 10 s, read 10 s
#   rf64: info 10 s, read 10 s
#   caf: info fails, its reason is 'Supported file format but file is malformed.'
#   ogg: info 7 s, read 7 s
#   flac: info 30 s, read fails, its reason is 'Error : flac decoder lost sync.'
#   mp3: info 30 s, read 10 s
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet soundfile==0.14.0 numpy==2.4.6
cat > "$folder/lengths.py" <<'PYTHON'
import os
import sys

import numpy as np
import soundfile

RATE, SECONDS = 22_050, 30
wave = (0.3 * np.sin(np.arange(RATE * SECONDS) / 20)).astype(np.float32)
for name in ("wav", "aiff", "au", "w64", "rf64", "caf", "ogg", "flac", "mp3"):
    path = os.path.join(sys.argv[1], f"a.{name}")
    soundfile.write(path, wave, RATE, format=name.upper())
    os.truncate(path, os.path.getsize(path) // 3)
    try:
        told = f"info {soundfile.info(path).duration:.0f} s"
    except soundfile.LibsndfileError as error:
        print(f"{name}: info fails, its reason is {error.error_string!r}")
        continue
    try:
        told += f", read {len(soundfile.read(path)[0]) / RATE:.0f} s"
    except soundfile.LibsndfileError as error:
        told += f", read fails, its reason is {error.error_string!r}"
    print(f"{name}: {told}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/lengths.py" "$folder" 2>/dev/null)
echo "$seen"
diff <(sed -n 's/^#   //p' "$0") <(echo "$seen")
