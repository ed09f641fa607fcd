"""Find and kill a running stack's trainings: processes of this machine, in containers or not.

A training's parent is its task process. The task process's parent is the supervisor, one of
Celery's pool processes. The supervisor's parent is the worker.
"""

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deploy.airflow_api import NotFoundError, path
from deploy.demo import Run, trigger
from deploy.running import Stack

GPU_LOCKS = Path("/var/tmp/music-genre-gpus")
VICTIMS = ("trainer", "task process", "supervisor", "worker")
SWEEP = "music_genre_sweep"
FREE_SECONDS = 10.0
ROUND_SECONDS = 200.0
RETRIES = 2
"""Retries of each training of the sweep. A training that is killed more often fails."""


@dataclass(frozen=True)
class Training:
    """A running `music-genre train`."""

    process: psutil.Process
    gpu: str
    seed: int

    def victim(self, kind: str) -> psutil.Process:
        """The process to kill for this kind of victim: the trainer or one of its ancestors."""
        found = self.process
        for _ in range(VICTIMS.index(kind)):
            found = found.parent()
        return found

    def is_computing(self) -> bool:
        """Whether the training already holds the lock of its GPU."""
        lock = GPU_LOCKS / f"{self.gpu}.lock"
        held = Path("/proc/locks").read_text()
        return lock.exists() and f":{lock.stat().st_ino} " in held

    def has_checkpoint(self) -> bool:
        """Whether the training has a checkpoint from which it can resume."""
        try:
            folders = {path.parent for path in self._artifacts().glob("runs/*/checkpoint-*.pt")}
            found = [json.loads((each / "settings.json").read_text()) for each in folders]
        except (OSError, psutil.Error):  # the training has just ended
            return False
        return any(each["config"]["seed"] == self.seed for each in found)

    def _artifacts(self) -> Path:
        """The training's artifact folder; in a container, as seen from this machine."""
        within = self.process.environ()["MUSIC_GENRE_ARTIFACTS"]
        return Path(f"/proc/{self.process.pid}/root") / within.lstrip("/")


def trainings(seeds: range) -> list[Training]:
    """Every training with one of these seeds on this machine, in containers too."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "train" not in words[1:4] or process.status() == psutil.STATUS_ZOMBIE:
                continue
            seed = int(words[words.index("--seed") + 1])
            parent = process.parent()
            if parent and parent.cmdline() == words:
                continue  # a forked child of a training, before its exec
            if seed in seeds:
                found.append(
                    Training(process, process.environ().get("CUDA_VISIBLE_DEVICES", ""), seed)
                )
        except (ValueError, KeyError, psutil.Error):
            continue
    return found


def assert_one_a_gpu(found: list[Training]) -> None:
    gpus = sorted(training.gpu for training in found)
    assert len(set(gpus)) == len(gpus), f"two trainings on one GPU: {gpus}"


def sweep(stack: Stack, seeds: range, epochs: int, audio: str) -> Run:
    parameters = {"models": ["shufflenet_v2_x0_5"], "seeds": list(seeds), "epochs": epochs}
    return trigger(stack, {**parameters, "audio": audio}, SWEEP)


@contextmanager
def standing_still(found: Sequence[Training]) -> Iterator[None]:
    """Suspend trainings for a while: they keep their GPUs and use no processor time."""
    for each in found:
        each.process.suspend()
    try:
        yield
    finally:
        for each in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.process.resume()


def train_instances(stack: Stack, run: Run) -> list[dict]:
    address = path("dags", run.dag_id, "dagRuns", run.run_id, "taskInstances")
    listed = stack.api.get(f"{address}?limit=100")["task_instances"]
    return [each for each in listed if each["task_id"] == "train" and each["map_index"] >= 0]


def log_of(stack: Stack, run: Run, map_index: int, attempt: int) -> str:
    address = path("dags", run.dag_id, "dagRuns", run.run_id, "taskInstances", "train")
    query = f"map_index={map_index}&full_content=true"
    try:
        return str(stack.api.get(f"{address}/logs/{attempt}?{query}"))
    except NotFoundError:
        return ""


TENS = 10
"""Number of trainings in a soak's sweep; each one is killed."""


@dataclass
class Kills:
    """The outcome of killing processes."""

    free_seconds: dict[int, float] = field(default_factory=dict)
    """Seed of the training whose process was killed → seconds until all its orphans had ended."""
    hits: Counter[int] = field(default_factory=Counter)
    """Seed → how often a kill ended its training. Killing a worker ends all of its trainings."""
    took_others: bool = False
    """Whether a kill might have ended tasks before their commands ran; `hits` omits these tasks."""

    def figures(self, kinds: Mapping[int, str]) -> dict[str, str]:
        """The outcome for each kind of victim, as text."""
        told = {}
        for kind in dict.fromkeys(kinds.values()):
            took = [s for seed, s in self.free_seconds.items() if kinds[seed] == kind]
            told[kind] = f"killed {len(took)} times, GPU free after at most {max(took):.2f} s"
        return told


def kill_each_once(run: Run, seeds: range, kinds: Mapping[int, str]) -> Kills:
    """Kill -9 one process of each training in `kinds`, once the training has a checkpoint.

    Returns when the run has ended. Asserts all the time that no GPU has two trainings. Asserts
    after each kill that the orphaned processes end in time.

    Args:
        run: the sweep.
        seeds: the seeds of all its trainings.
        kinds: seed of a training to kill → the kind of victim.
    """
    done = Kills()
    give_up_at = time.monotonic() + ROUND_SECONDS * len(seeds)
    while run.state() not in ("success", "failed"):
        found = trainings(seeds)
        assert time.monotonic() < give_up_at, (run.rows(), found, done)
        assert_one_a_gpu(found)
        for each in found:
            is_due = each.seed in kinds and each.seed not in done.free_seconds
            if is_due and each.has_checkpoint() and not _would_fail(run, kinds[each.seed]):
                _kill(each, kinds[each.seed], found, done)
                break
        time.sleep(0.2)
    return done


def _would_fail(run: Run, kind: str) -> bool:
    """Whether a kill could end a task's last try: killing a worker also ends starting tasks."""
    if kind != "worker":
        return False
    listed = run._get("/taskInstances?limit=100")["task_instances"]
    last = [each for each in listed if (each["try_number"] or 0) > RETRIES]
    return any(each["state"] in ("queued", "running") for each in last)


def _kill(training: Training, kind: str, others: list[Training], done: Kills) -> None:
    try:
        victim = training.victim(kind)
        orphans = [training.process, *victim.children(recursive=True)]
    except (psutil.NoSuchProcess, AttributeError):  # the training has just ended by itself
        return
    pids = {process.pid for process in orphans}
    hit = [each.seed for each in others if each.process.pid in pids]
    if any(done.hits[seed] >= RETRIES for seed in hit):
        return  # kill later: a kill now would end some training's last try
    began = time.monotonic()
    victim.kill()
    _, alive = psutil.wait_procs(orphans, timeout=FREE_SECONDS)
    assert alive == [], f"outlived the {kind} by {FREE_SECONDS} s: {alive}"
    done.free_seconds[training.seed] = time.monotonic() - began
    done.hits.update(hit)
    done.took_others |= kind == "worker"


def assert_all_resumed(
    stack: Stack, run: Run, done: Kills, seeds: range, lost: int | None = None
) -> None:
    """Assert that every training succeeded, and that killed trainings resumed at a step > 0.

    Args:
        lost: seed of a training that was marked failed. Then the run fails, but all other trainings
            succeed.
    """
    assert run.state() == ("success" if lost is None else "failed"), run.rows()
    for instance in train_instances(stack, run):
        seed, index = seeds[instance["map_index"]], instance["map_index"]
        assert instance["state"] == ("failed" if seed == lost else "success"), run.rows()
        if seed == lost:
            continue
        was_tried_again = instance["try_number"] > 1
        assert was_tried_again == (seed in done.hits) or (was_tried_again and done.took_others)
        if seed in done.free_seconds:
            tries = range(1, instance["try_number"] + 1)
            log = "".join(log_of(stack, run, index, attempt) for attempt in tries)
            assert re.search(r"resuming at step [1-9]", log), (seed, log[-3000:])
