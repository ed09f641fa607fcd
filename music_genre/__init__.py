"""Music-genre classification: audio folders to spectrograms to a trained, evaluated model."""

__version__ = "0.1.0"
