"""The device that this process computes on, and the lock it holds while computing on a GPU."""

import contextlib
import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch

from music_genre.errors import InputError
from music_genre.resources import usable_cores
from music_genre.store import locks

logger = logging.getLogger(__name__)

THREADS_VARIABLE: Final = "OMP_NUM_THREADS"
VISIBLE_VARIABLE: Final = "CUDA_VISIBLE_DEVICES"
LARGER_VARIABLE: Final = "MUSIC_GENRE_LARGER_GPU"
"""Environment variable with advice for the out-of-memory error: how to get more GPU memory."""
M_MMAP_THRESHOLD: Final = -3  # malloc.h
M_TRIM_THRESHOLD: Final = -1


def choose(name: str) -> torch.device:
    """Choose the device for auto, cpu or cuda, and log it; let torch use all usable cores.

    `OMP_NUM_THREADS`, if set, limits the number of threads.

    Raises:
        InputError: cuda is requested, but no GPU is visible.
    """
    share = os.environ.get(THREADS_VARIABLE, "")
    n_threads = min(usable_cores(), int(share)) if share.isdecimal() else usable_cores()
    n_threads = max(1, n_threads)
    torch.set_num_threads(n_threads)
    _keep_freed_memory()
    visible = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not visible:
        raise InputError("--device cuda: no NVIDIA GPU is visible; use --device auto or cpu")
    if visible:
        # With deterministic algorithms, a resumed run gives the same result as an uninterrupted
        # run. torch warns about operations that have no deterministic algorithm.
        torch.use_deterministic_algorithms(True, warn_only=True)
        logger.info("computing on %s", torch.cuda.get_device_name())
        return torch.device("cuda")
    reason = "as requested" if name == "cpu" else "no NVIDIA GPU is visible"
    logger.info("%s: computing on the CPU (%d threads)", reason, n_threads)
    return torch.device("cpu")


def describe(device: torch.device) -> str:
    """Return the name of the GPU, or CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


@contextmanager
def held(name: str, gpu_locks: Path) -> Iterator[torch.device]:
    """Choose a device; if it is a GPU, hold the GPU's lock while the block runs.

    Args:
        name: auto, cpu or cuda.
        gpu_locks: folder of the GPU locks; all containers of a host must share it.

    Raises:
        InputError: there is no such device, or it has too little memory.
        TemporaryError: another process computes on the GPU.
    """
    device = choose(name)
    gpu = _gpu(name, device)
    lock = locks.gpu_lock(gpu, gpu_locks) if gpu else contextlib.nullcontext()
    try:
        with lock:
            yield device
    except torch.OutOfMemoryError as error:
        larger = os.environ.get(LARGER_VARIABLE) or "a GPU with more memory"
        raise InputError(
            f"{describe(device)}: out of memory ({str(error).splitlines()[0]}); use a smaller "
            f"--batch-size or --model, or {larger}"
        ) from None


def _gpu(name: str, device: torch.device) -> str:
    """Return the UUID of the GPU to lock; empty if there is none to lock.

    A process locks the GPU that it computes on. If the worker gave the process a GPU that CUDA
    cannot use, the process computes on the CPU, but still locks that GPU, so that no other process
    takes it.
    """
    if device.type == "cuda":
        return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    given = os.environ.get(VISIBLE_VARIABLE, "")
    if name == "cpu" or not given.startswith("GPU-") or "," in given:
        return ""
    logger.warning(
        "%s is assigned to this process, but CUDA cannot use it; check the driver", given
    )
    return given


def _keep_freed_memory() -> None:
    """Make malloc reuse freed memory: getting new pages slows resnet18 on CPUs by a fifth."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**30)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
