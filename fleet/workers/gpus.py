"""The NVIDIA GPUs of this machine, asked of the driver (NVML) without loading CUDA.

CUDA is never loaded in a worker: a process that forks after it cannot use it (CUDA's own limit,
seen as "Cannot re-initialize CUDA in forked subprocess").
"""

import logging
import os
from dataclasses import dataclass

import pynvml

from fleet.contract import VISIBLE_VARIABLE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver names it."""

    uuid: str
    name: str


SLOTS_VARIABLE = "FLEET_SLOTS"
"""Says how many slots a worker has."""
GPUS_VARIABLE = "FLEET_GPUS"
"""Names the GPUs of a worker's slots by UUID, a comma between them."""


def list_gpus() -> list[Gpu]:
    """List the GPUs that this process may use, in the driver's order; none without a driver.

    `CUDA_VISIBLE_DEVICES`, where it is set, names them by UUID or by the driver's number.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        logger.warning("the NVIDIA driver does not say how many GPUs it has: %s", error)
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
    """Name the GPUs of this worker's slots by UUID; none where they compute on the CPU."""
    return [uuid for uuid in os.environ.get(GPUS_VARIABLE, "").split(",") if uuid]


def _begins(uuid: str, word: str) -> bool:
    """Whether a word names a GPU by the beginning of its UUID, as CUDA lets it."""
    return word.startswith("GPU-") and uuid.startswith(word)


def _gpu(index: int) -> Gpu | None:
    """Ask for one GPU; a sick one is left out, so that the others work on."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return Gpu(uuid=pynvml.nvmlDeviceGetUUID(handle), name=pynvml.nvmlDeviceGetName(handle))
    except pynvml.NVMLError as error:
        logger.warning("GPU %d is left out, the driver says: %s", index, error)
        return None
