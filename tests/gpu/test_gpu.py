"""What only a GPU can show: exact resumption, precision, GPU memory and the GPU's lock."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, environment, finish, music_genre, start

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.timeout(300)
# With momentum, mixup and averaged weights, a checkpoint has every kind of state to restore.
STATEFUL = ("--epochs", 6, "--mixup", 0.2, "--ema-decay", 0.99)
MODELS = ("resnet18", "shufflenet_v2_x0_5")


def train(split: Path, run: Path, *options: object) -> list[object]:
    return ["train", "--split", split, "--run", run, "--artifacts", run.parent, *options]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    newest = max(run.glob("checkpoint-*.pt"), key=lambda path: path.name)
    return torch.load(newest, map_location="cpu", weights_only=True)


def assert_same(run: Path, other: Path) -> None:
    """Assert that weights, their average and the optimizer's state are equal bit for bit."""
    ours, theirs = weights_of(run), weights_of(other)
    for part in ("weights", "averaged"):
        for name, value in (theirs[part] or {}).items():
            assert torch.equal(ours[part][name], value), f"{part} {name}"
    states = zip(
        ours["optimizer"]["state"].items(), theirs["optimizer"]["state"].items(), strict=True
    )
    for (number, own), (_, expected) in states:
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(own[name], value), f"{name} of parameter {number}"


@pytest.fixture(scope="module", params=MODELS)
def uninterrupted(split: Path, request, tmp_path_factory) -> tuple[str, Path]:
    run = tmp_path_factory.mktemp(request.param) / "run"
    options = ("--model", request.param, *STATEFUL, "--data", "resident")
    trained = music_genre(*train(split, run, *options))
    assert trained.result["device"] == "cuda"
    assert trained.result["device_name"] == torch.cuda.get_device_name()
    print(f"{request.param}: {trained.result['images_per_second']} images/s")
    return request.param, run


def wait_for(process: subprocess.Popen[str], beginning: str) -> None:
    assert process.stderr
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith(beginning):
            return
    pytest.fail("".join(seen))


def test_interrupted_twice_it_ends_with_the_same_weights(split, uninterrupted, tmp_path):
    name, expected = uninterrupted
    run = tmp_path / "run"
    words = train(split, run, "--model", name, *STATEFUL, "--checkpoint-seconds", 0.2)
    for epoch, number, code in ((1, signal.SIGTERM, 75), (4, signal.SIGKILL, -9)):
        process = start(*words)
        wait_for(process, f"epoch={epoch} ")
        process.send_signal(number)
        assert finish(process).code == code
    resumed = music_genre(*words)
    assert resumed.code == 0, resumed.stderr
    assert re.search(r"resuming at step [1-9]", resumed.stderr)
    assert_same(run, expected)


def test_streamed_images_train_the_same_weights(split, uninterrupted, tmp_path):
    name, expected = uninterrupted
    run = tmp_path / "run"
    streamed = music_genre(*train(split, run, "--model", name, *STATEFUL, "--data", "streamed"))
    assert streamed.code == 0, streamed.stderr
    assert list(tmp_path.rglob("frames.u8"))
    assert_same(run, expected)


def test_convolutions_compute_in_bfloat16_and_channels_last():
    from music_genre.config import TrainConfig
    from music_genre.model import network as model
    from music_genre.training import optimization

    network = model.build("resnet18", 7, 128, 128, seed=0).cuda()
    seen = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _module, _given, out: seen.append(out))
    criterion = optimization.make_criterion(TrainConfig())
    crops = torch.randn(8, 1, 128, 128, device="cuda")
    labels = torch.zeros(8, dtype=torch.long, device="cuda")
    loss = optimization.add_gradients(
        network, criterion, crops.contiguous(memory_format=torch.channels_last), labels
    )
    assert torch.isfinite(loss)
    assert len(seen) == 20
    assert {out.dtype for out in seen} == {torch.bfloat16}
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)


# Limits the GPU memory to less than the training needs, as on a small GPU.
SMALL_GPU = """
import sys, torch
torch.cuda.set_per_process_memory_fraction(0.005)
from music_genre.__main__ import main
sys.argv = ["music-genre", *sys.argv[1:]]
main()
"""


def test_out_of_memory_names_the_larger_queue_in_one_line(split, tmp_path):
    words = train(split, tmp_path / "run", "--model", "resnet50", "--batch-size", 512)
    ended = subprocess.run(
        [sys.executable, "-c", SMALL_GPU, *map(str, words)],
        env=environment(MUSIC_GENRE_LARGER_GPU="the run parameter gpu_queue=large"),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 65, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"error: {torch.cuda.get_device_name()}: out of memory (")
    assert "--batch-size or --model, or the run parameter gpu_queue=large" in last


def test_a_gpu_is_used_by_its_uuid_and_by_one_process(split, tmp_path):
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    own = {"CUDA_VISIBLE_DEVICES": uuid}
    locks = ("--gpu-locks", tmp_path / "locks")
    (tmp_path / "locks").mkdir()
    words = train(split, tmp_path / "first", "--epochs", 500, *locks)
    first = start(*words, **own)
    try:
        wait_for(first, "epoch=1 ")
        assert (tmp_path / "locks" / f"{uuid}.lock").exists()
        for variables in (own, {}):
            second = music_genre(
                *train(split, tmp_path / "second", "--epochs", 1, *locks), **variables
            )
            assert second.code == 75, second.stderr
            assert f"process {first.pid}" in second.stderr.splitlines()[-1]
        first.terminate()
        began = time.monotonic()
        assert finish(first).code == 75
        assert time.monotonic() - began < 10
    finally:
        first.kill()
        first.wait()
    third = music_genre(*train(split, tmp_path / "second", "--epochs", 1, *locks), **own)
    assert third.result["device"] == "cuda"


@pytest.mark.parametrize("uninterrupted", MODELS[:1], indirect=True)
def test_evaluation_and_prediction_work_on_the_gpu(split, uninterrupted):
    _, run = uninterrupted
    measured = music_genre("evaluate", "--run", run, "--split-name", "validation")
    assert 0 < measured.result["accuracy"] <= 1
    folder = REPOSITORY / "deploy" / "demo_music" / "genres_original" / "techno"
    ended = music_genre("predict", "--json", "--run", run, folder)
    assert ended.code == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == len(list(folder.iterdir()))


def test_the_benchmark_prints_its_table_with_the_gpus_utilisation(capsys):
    words = ["benchmarks/training.py", "--device", "cuda", "--epochs", "3"]
    ended = subprocess.run(
        [sys.executable, *words],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    with capsys.disabled():
        print(f"\n{ended.stdout}")
    assert ended.returncode == 0, ended.stderr
    rows = re.findall(r"^(\S+) +(torchvision|music-genre) (.*)$", ended.stdout, re.M)
    assert [name for name, *_ in rows] == [name for name in MODELS for _ in range(2)]
    for *_, figures in rows:
        speed, *_, busy = figures.split()
        assert float(speed) > 0
        assert 0 < float(busy.rstrip("%")) <= 100
