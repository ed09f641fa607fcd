"""A fake NVIDIA driver that reports GPUs which do not exist (nvml.c)."""

import subprocess
from pathlib import Path


def make_driver(folder: Path, n_gpus: int, *, first: int = 1, sick: int = 0) -> str:
    """Compile libnvidia-ml.so.1 into a folder; returns the folder for LD_LIBRARY_PATH.

    Args:
        folder: where to put the library.
        n_gpus: how many GPUs the driver reports: GPU-1, GPU-2 and so on.
        first: number of the first GPU. All stacks of a machine share the locks of GPUs, so stacks
            that run side by side need different GPUs.
        sick: position, from 1, of a GPU that does not answer; 0 if all answer.
    """
    numbers = {"N_GPUS": n_gpus, "FIRST": first, "SICK": sick}
    defined = [f"-D{name}={value}" for name, value in numbers.items()]
    library = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml.c")
    subprocess.run(["gcc", "-shared", "-fPIC", *defined, "-o", library, source], check=True)
    return str(folder)
