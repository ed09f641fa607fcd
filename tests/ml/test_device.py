"""The device and its lock; some tests use a GPU if the machine has one."""

import logging
from pathlib import Path

import pytest
import torch

from music_genre.errors import InputError, TemporaryError
from music_genre.model import device
from music_genre.resources import usable_cores
from music_genre.store import locks


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_auto_says_that_it_takes_the_cpu(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(device.THREADS_VARIABLE, raising=False)
    caplog.set_level(logging.INFO)
    assert device.choose("auto").type == "cpu"
    threads = usable_cores()
    assert caplog.messages == [
        f"no NVIDIA GPU is visible: computing on the CPU ({threads} threads)"
    ]
    with pytest.raises(InputError, match="--device cuda: no NVIDIA GPU is visible"):
        device.choose("cuda")


@pytest.mark.parametrize(
    ("share", "n_threads"), [("1", 1), ("64", usable_cores()), ("all", usable_cores())]
)
def test_a_share_of_the_cores_is_kept_to(
    share: str, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(device.THREADS_VARIABLE, share)
    device.choose("cpu")
    assert torch.get_num_threads() == n_threads
    monkeypatch.delenv(device.THREADS_VARIABLE)
    device.choose("cpu")
    assert torch.get_num_threads() == usable_cores()


def test_a_gpu_that_a_worker_gave_is_held_also_where_cuda_cannot_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(device.VISIBLE_VARIABLE, "GPU-1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with device.held("auto", tmp_path) as chosen:
        assert chosen.type == "cpu"
        assert "GPU-1 is assigned to this process, but CUDA cannot use it" in caplog.text
        with pytest.raises(TemporaryError, match="GPU GPU-1: in use by process"):
            with device.held("auto", tmp_path):
                raise AssertionError
        with device.held("cpu", tmp_path):  # the CPU needs no lock
            pass
    with locks.gpu_lock("GPU-1", tmp_path):
        pass


@pytest.mark.parametrize("given", ["", "0", "GPU-1,GPU-2"])
def test_without_a_gpu_of_its_own_a_process_holds_none(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(device.VISIBLE_VARIABLE, given)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with device.held("auto", tmp_path):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("larger", "remedy"),
    [("", "or a GPU with more memory$"), ("the run parameter gpu_queue=large", "gpu_queue=large$")],
)
def test_too_little_memory_is_one_line_and_names_the_larger_queue(
    larger: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(device.LARGER_VARIABLE, larger)
    with pytest.raises(InputError, match=rf"out of memory \(CUDA out of memory.*{remedy}"):
        with device.held("cpu", tmp_path):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore")
