"""The NVIDIA GPUs of this machine, listed by the driver (NVML) without loading CUDA.

A worker never loads CUDA, because processes forked afterwards could not use CUDA. In such a process
CUDA fails with "Cannot re-initialize CUDA in forked subprocess".
"""

import logging
import os
from dataclasses import dataclass

import pynvml

from fleet.contract import VISIBLE_VARIABLE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """One GPU: its UUID and its name, as the driver reports them."""

    uuid: str
    name: str


SLOTS_VARIABLE = "FLEET_SLOTS"
"""The environment variable that says how many slots a worker has."""
GPUS_VARIABLE = "FLEET_GPUS"
"""The environment variable with the UUIDs of a worker's GPUs, one per slot, comma-separated."""


def list_gpus() -> list[Gpu]:
    """List the GPUs that this process may use, in the driver's order; empty without a driver.

    If `CUDA_VISIBLE_DEVICES` is set, only the GPUs that it names are listed. The variable names a
    GPU by UUID or by the driver's number.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        logger.warning("the NVIDIA driver did not report its number of GPUs: %s", error)
        return []
    finally:
        pynvml.nvmlShutdown()
    visible = os.environ.get(VISIBLE_VARIABLE)
    if visible is None:
        return [gpu for gpu in found if gpu]
    words = [word.strip() for word in visible.split(",")]
    return [
        gpu
        for index, gpu in enumerate(found)
        if gpu and any(word == str(index) or _begins(gpu.uuid, word) for word in words)
    ]


def slot_gpus() -> list[str]:
    """List the UUIDs of the GPUs of this worker's slots; empty if the slots compute on the CPU."""
    return [uuid for uuid in os.environ.get(GPUS_VARIABLE, "").split(",") if uuid]


def _begins(uuid: str, word: str) -> bool:
    """Whether a word names a GPU by the beginning of its UUID, as CUDA allows."""
    return word.startswith("GPU-") and uuid.startswith(word)


def _gpu(index: int) -> Gpu | None:
    """Query one GPU; returns None for a faulty GPU, so that the other GPUs stay in use."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return Gpu(uuid=pynvml.nvmlDeviceGetUUID(handle), name=pynvml.nvmlDeviceGetName(handle))
    except pynvml.NVMLError as error:
        logger.warning("GPU %d is not used, because the driver reports an error: %s", index, error)
        return None
