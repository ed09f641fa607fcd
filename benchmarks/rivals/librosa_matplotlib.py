"""Draw the audio in FOLDER as 432 x 288 pictures in OUTPUT, in the style of GTZAN and tutorials.

One figure serves all tracks: a new figure for each, as in tutorials, takes more time and memory.
"""

import sys
from pathlib import Path

import librosa
import librosa.display
import matplotlib as mpl
import numpy as np

mpl.use("agg")
from matplotlib import pyplot as plt

folder, output = map(Path, sys.argv[1:])
figure = plt.figure(figsize=(4.32, 2.88), dpi=100)
for path in sorted(each for each in folder.rglob("*") if each.is_file()):
    waveform, _ = librosa.load(path, sr=22_050)
    # librosa's defaults: n_fft 2048, hop 512, 128 bands
    power = librosa.feature.melspectrogram(y=waveform, sr=22_050)
    axes = figure.add_subplot()
    librosa.display.specshow(librosa.power_to_db(power, ref=np.max), sr=22_050, ax=axes)
    axes.set_axis_off()
    figure.savefig(output / f"{path.stem}.png")
    figure.clear()
