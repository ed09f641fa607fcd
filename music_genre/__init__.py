"""Classify music by genre: draw spectrograms of audio files, train a model and evaluate it."""

__version__ = "0.1.0"
