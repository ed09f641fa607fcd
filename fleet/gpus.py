"""The NVIDIA GPUs of this machine, asked of the driver (NVML) without loading CUDA.

CUDA is never loaded in a worker: a process that forks after it cannot use it (CUDA's own limit,
seen as "Cannot re-initialize CUDA in forked subprocess").
"""

import os
from dataclasses import dataclass

import pynvml


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver names it."""

    uuid: str
    name: str
    memory_bytes: int


VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
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
    finally:
        pynvml.nvmlShutdown()
    visible = os.environ.get(VISIBLE_VARIABLE)
    if visible is None:
        return found
    words = {word.strip() for word in visible.split(",")}
    return [gpu for index, gpu in enumerate(found) if words & {gpu.uuid, str(index)}]


def slot_gpus() -> list[str]:
    """Name the GPUs of this worker's slots by UUID; none where they compute on the CPU."""
    return [uuid for uuid in os.environ.get(GPUS_VARIABLE, "").split(",") if uuid]


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        memory_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
    )
