"""Decode audio files block by block; reject unusable files and give the reason."""

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from music_genre.audio import headers
from music_genre.errors import AudioError

MINIMUM_SECONDS = 1.0
"""Shorter files are rejected: they would fill at most a third of a default crop."""
SILENCE = 10 / 32768
"""Files with a lower peak are rejected as silent. Ten steps of 16-bit audio (-70 dB) can be mere
dither."""
LOUDEST = 1e10
"""Files with a higher peak are rejected: such a peak is not audio, and its square might overflow
float32. The samples of 32-bit integer audio stay below this limit."""
SAMPLE_RATES = range(1_000, 1_000_001)
"""Accepted sample rates in Hz."""
MOST_CHANNELS = 64
MOST_HOURS = 48
"""Longer files are rejected. No DJ set is this long, and images of up to 54 hours can be read
back."""
BLOCK_SAMPLES = 1 << 16
"""Samples decoded at a time, counted over all channels."""
PATIENCE_SECONDS, PATIENCE_PER_BYTE = 8.0, 20 / 2**20


def patience(n_bytes: int) -> float:
    """Return the limit in CPU seconds for decoding a file; a slower decoder counts as hung."""
    return PATIENCE_SECONDS + PATIENCE_PER_BYTE * n_bytes


class Sound:
    """An open audio file whose header has passed the checks."""

    def __init__(self, file: soundfile.SoundFile, path: Path) -> None:
        self._file = file
        self._length_is_guessed = file.format == "MP3" and not headers.mp3_says_its_length(path)
        self.seconds: float = file.frames / file.samplerate
        # Samples of up to 16 bits are read as int16. Reading 30 s then takes 0.1 ms, but 1.3 ms as
        # floats (measured). Dividing by `full_scale` costs nothing extra: it is merged into a later
        # multiplication.
        narrow = file.subtype in {"PCM_16", "PCM_S8", "PCM_U8"}
        self.full_scale = 32768.0 if narrow else 1.0
        self._dtype = np.int16 if narrow else np.float32

    def tags(self) -> dict[str, str]:
        """Return the tags that the file has, such as title, artist and album."""
        return dict(self._file.copy_metadata())

    def blocks(self, sample_rate: int) -> Iterator[NDArray[Any]]:
        """Decode, mix to mono and resample, block by block.

        Args:
            sample_rate: the rate of the result in Hz; soxr resamples to it at HQ quality.

        Yields:
            (n_samples,) int16 or float32; `full_scale` is the sample value that counts as 1. A
            block is valid only until the next block is requested.

        Raises:
            AudioError: the file cannot be decoded, is shorter than announced, is silent, or holds
                samples that are too large or not finite. The error can come after the last block.
        """
        blocks = _checked(map(_mono, self._frames()), self.full_scale)
        if self._file.samplerate == sample_rate:
            return blocks
        return _resampled(blocks, self._file.samplerate, sample_rate)

    def _frames(self) -> Iterator[NDArray[Any]]:
        """Yield (n_frames, n_channels) blocks until all frames announced by the header are read."""
        n_channels = self._file.channels
        buffer = np.empty((BLOCK_SAMPLES // n_channels, n_channels), self._dtype)
        done, announced = 0, self._file.frames
        while done < announced:
            try:
                frames = self._file.read(out=buffer[: announced - done])
            except soundfile.LibsndfileError as error:
                raise AudioError(f"cannot be decoded: {_reason(error)}") from None
            if not len(frames):
                if self._length_is_guessed:
                    return
                raise AudioError(f"ends after {done} of {announced} frames; copy the file again")
            done += len(frames)
            yield frames


@contextmanager
def open_sound(path: Path) -> Iterator[Sound]:
    """Open an audio file and check its header.

    Raises:
        AudioError: the file is empty or not audio, or its header announces something impossible.
        OSError: the file cannot be read.
    """
    descriptor = _open(path)
    try:
        file = soundfile.SoundFile(descriptor, closefd=True)
    except soundfile.LibsndfileError as error:
        # No os.close: libsndfile has already closed the descriptor.
        raise AudioError(f"not audio: {_reason(error)}") from None
    # Make soundfile treat the file as not seekable. Otherwise soundfile would seek to the current
    # position after each block. For MP3 these seeks take a fifth of the decoding time (measured),
    # and in a damaged file a seek can end at a wrong position.
    file.seekable = lambda: False
    with file:
        _check_header(file, path)
        yield Sound(file, path)


def _open(path: Path) -> int:
    """Open a regular file that is not empty, and return its descriptor.

    soundfile gets the descriptor, not the path, for two reasons: soundfile cannot open names that
    are not UTF-8, and os.open raises OSError where soundfile would raise an error of its own.
    Without O_NONBLOCK, opening a pipe could block forever.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_size > 0:
        return descriptor
    os.close(descriptor)
    raise AudioError("empty: 0 bytes" if stat.S_ISREG(found.st_mode) else "not a regular file")


def _reason(error: soundfile.LibsndfileError) -> str:
    text = " ".join(error.error_string.split()).removeprefix("Error : ").rstrip(".")
    # For some damaged MP3s libsndfile says that the file does not exist, although it is open.
    return "damaged" if text.startswith("File does not exist") else text


def _check_header(file: soundfile.SoundFile, path: Path) -> None:
    """Reject a file whose header alone shows that it is unusable."""
    rate, n_frames = file.samplerate, file.frames
    if rate not in SAMPLE_RATES:
        raise AudioError(f"the header announces {rate} samples a second; export the file again")
    if file.channels > MOST_CHANNELS:
        raise AudioError(f"the header announces {file.channels} channels; export the file again")
    if n_frames <= 0:
        raise AudioError("contains no audio: 0 frames")
    announced, present = headers.data_bytes(path)
    if announced > present:
        raise AudioError(
            f"truncated: the header announces {announced} bytes of audio, but the file contains "
            f"{present}; copy the file again"
        )
    seconds = n_frames / rate
    if seconds > MOST_HOURS * 3600:
        # libsndfile also reports a huge length if the header of a streamed FLAC states no length.
        raise AudioError(
            f"the header announces {seconds / 3600:.3g} hours, the maximum is {MOST_HOURS}; export "
            "the file again or shorten the audio"
        )
    if seconds < MINIMUM_SECONDS:
        raise AudioError(f"too short: {seconds:.2f} s, the minimum is {MINIMUM_SECONDS} s")


def _mono(frames: NDArray[Any]) -> NDArray[Any]:
    """Mix frames of shape (n_frames, n_channels) to mono samples of shape (n_frames,)."""
    n_channels = frames.shape[1]
    if n_channels == 1:
        return frames[:, 0]
    # Adding columns is far cheaper than numpy's mean over the short axis (measured: 5x).
    mono = frames[:, 0].astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # `_checked` rejects an overflow
        for channel in range(1, n_channels):
            mono += frames[:, channel]
    mono *= np.float32(1 / n_channels)
    return mono


def _checked(blocks: Iterator[NDArray[Any]], full_scale: float) -> Iterator[NDArray[Any]]:
    """Yield the blocks unchanged; reject silence, and samples that are too large or not finite."""
    peak = 0.0
    for block in blocks:
        highest = max(float(block.max()), -float(block.min())) / full_scale
        if not math.isfinite(highest):
            raise AudioError("contains samples that are not finite numbers; export the file again")
        if highest > LOUDEST:
            raise AudioError(
                f"contains samples of {highest:.1g} times full scale; export the file again"
            )
        peak = max(peak, highest)
        yield block
    if peak < SILENCE:
        raise AudioError(f"silent: its peak is {peak:.1g} of full scale")


def _resampled(
    blocks: Iterator[NDArray[Any]], rate: int, sample_rate: int
) -> Iterator[NDArray[np.float32]]:
    """Resample (n_samples,) blocks; the total length is the same as from librosa.resample."""
    stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
    n_in = n_out = 0
    for block in blocks:
        resampled = stream.resample_chunk(block.astype(np.float32), last=False)
        n_in, n_out = n_in + len(block), n_out + len(resampled)
        yield resampled
    missing = math.ceil(n_in * (float(sample_rate) / rate)) - n_out
    rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)[:missing]
    yield np.pad(rest, (0, missing - len(rest)))
