"""Trainings of a running stack as the machine sees them, in containers or not: who is on which GPU.

A training's parent is its task's process, the parent of that its supervisor (one of Celery's pool
processes), and the parent of that the worker.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deploy.airflow_api import NotFoundError, path
from deploy.demo import Run, trigger
from deploy.stack import Stack

GPU_LOCKS = Path("/var/tmp/music-genre-gpus")
VICTIMS = ("trainer", "task process", "supervisor", "worker")
SWEEP = "music_genre_sweep"
FREE_SECONDS = 10.0


@dataclass(frozen=True)
class Training:
    """A `music-genre train` that runs."""

    process: psutil.Process
    gpu: str
    seed: int

    def victim(self, kind: str) -> psutil.Process:
        """The process of this training that a kind of victim names."""
        found = self.process
        for _ in range(VICTIMS.index(kind)):
            found = found.parent()
        return found

    def is_computing(self) -> bool:
        """Whether it has got as far as holding its GPU."""
        lock = GPU_LOCKS / f"{self.gpu}.lock"
        held = Path("/proc/locks").read_text()
        return lock.exists() and f":{lock.stat().st_ino} " in held


def trainings(seeds: range) -> list[Training]:
    """Every training of a run with these seeds that this machine's kernel runs."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if "train" not in words[1:4] or process.status() == psutil.STATUS_ZOMBIE:
                continue
            seed = int(words[words.index("--seed") + 1])
            if seed in seeds:
                found.append(Training(process, process.environ()["CUDA_VISIBLE_DEVICES"], seed))
        except (ValueError, KeyError, psutil.Error):
            continue
    return found


def assert_one_a_gpu(found: list[Training]) -> None:
    gpus = sorted(training.gpu for training in found)
    assert len(set(gpus)) == len(gpus), f"two trainings on one GPU: {gpus}"


def sweep(stack: Stack, seeds: range, epochs: int) -> Run:
    parameters = {"models": ["shufflenet_v2_x0_5"], "seeds": list(seeds), "epochs": epochs}
    return trigger(stack, parameters, SWEEP)


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


@dataclass
class Kills:
    """What came of killing."""

    kind: str
    free_seconds: list[float] = field(default_factory=list)
    """From each kill to the end of the last process that it orphaned."""
    hit: dict[int, int] = field(default_factory=dict)
    """Seed → how often its training ended by a kill."""


def kill_each_once(
    run: Run, kind: str, seeds: range, kill: Callable[[psutil.Process], None] = psutil.Process.kill
) -> Kills:
    """Kill a process of each training once, some seconds after it began to compute.

    Returns when the run has ended. Sees all the time that no GPU has two trainings, and after each
    kill that what it left is gone in time.
    """
    done, began = Kills(kind), {}
    while run.state() not in ("success", "failed"):
        found = trainings(seeds)
        assert_one_a_gpu(found)
        for training in found:
            if training.seed not in done.hit and training.is_computing():
                began.setdefault(training.seed, time.monotonic())
        ready = [
            each
            for each in found
            if each.seed not in done.hit and time.monotonic() - began.get(each.seed, 1e12) > 6
        ]
        if ready:
            _kill(ready[0], found, done, kill)
        time.sleep(0.2)
    return done


def _kill(
    training: Training,
    others: list[Training],
    done: Kills,
    kill: Callable[[psutil.Process], None],
) -> None:
    try:
        victim = training.victim(done.kind)
        orphans = [training.process, *victim.children(recursive=True)]
    except (psutil.NoSuchProcess, AttributeError):  # it has just ended by itself
        return
    began = time.monotonic()
    kill(victim)
    _, alive = psutil.wait_procs(orphans, timeout=FREE_SECONDS)
    assert alive == [], f"outlived the {done.kind} by {FREE_SECONDS} s: {alive}"
    done.free_seconds.append(time.monotonic() - began)
    pids = {process.pid for process in orphans}
    for each in others:
        if each.process.pid in pids:
            done.hit[each.seed] = done.hit.get(each.seed, 0) + 1


def assert_all_resumed(stack: Stack, run: Run, done: Kills, seeds: range) -> None:
    """Every training succeeded in the end, and those that were killed went on from a step > 0."""
    assert run.state() == "success", run.rows()
    assert set(done.hit) == set(seeds)
    for instance in train_instances(stack, run):
        seed, index = list(seeds)[instance["map_index"]], instance["map_index"]
        tries = range(1, instance["try_number"] + 1)
        log = "".join(log_of(stack, run, index, attempt) for attempt in tries)
        assert re.search(r"resuming at step [1-9]", log), (seed, log[-3000:])
