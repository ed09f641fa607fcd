"""An NVIDIA driver that names GPUs which are not there (nvml.c)."""

import subprocess
from pathlib import Path


def make_driver(folder: Path, n_gpus: int, *, first: int = 1, sick: int = 0) -> str:
    """Compile libnvidia-ml.so.1 into a folder, which is returned for LD_LIBRARY_PATH.

    Args:
        folder: where to.
        n_gpus: how many it names, as GPU-1, GPU-2 and so on.
        first: another number to begin with. GPUs' locks are the machine's: stacks side by side
            want GPUs of their own.
        sick: which of them does not answer, from 1; 0 for none.
    """
    numbers = {"N_GPUS": n_gpus, "FIRST": first, "SICK": sick}
    defined = [f"-D{name}={value}" for name, value in numbers.items()]
    library = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml.c")
    subprocess.run(["gcc", "-shared", "-fPIC", *defined, "-o", library, source], check=True)
    return str(folder)
