"""Draw the audio in FOLDER as log-mel images in OUTPUT, with librosa and Pillow."""

import sys
from pathlib import Path

import librosa
import numpy as np
from PIL import Image

folder, output = map(Path, sys.argv[1:])
for path in sorted(each for each in folder.rglob("*") if each.is_file()):
    waveform, _ = librosa.load(path, sr=22_050)
    # librosa's defaults: n_fft 2048, hop 512, 128 bands
    power = librosa.feature.melspectrogram(y=waveform, sr=22_050)
    decibels = librosa.power_to_db(power, ref=np.max)
    pixels = np.rint((decibels[::-1] + 80) * 255 / 80).astype(np.uint8)
    Image.fromarray(pixels).save(output / f"{path.stem}.png")
