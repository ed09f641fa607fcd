"""The NVIDIA GPUs of this machine, asked of the driver (NVML) without loading CUDA.

CUDA is never loaded in a worker: a process that forks after it cannot use it (CUDA's own limit,
seen as "Cannot re-initialize CUDA in forked subprocess").
"""

from dataclasses import dataclass

import pynvml


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver names it."""

    uuid: str
    name: str
    memory_bytes: int


def list_gpus() -> list[Gpu]:
    """List the GPUs that the driver shows here, in the driver's order; none without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        memory_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
    )
