"""Processes for work that may crash or hang, as decoders of damaged files do.

A worker that dies takes one task with it: the task fails with the reason, another worker goes on.
"""

import mmap
import os
import resource
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, process
from typing import Generic, TypeVar

from music_genre.errors import TemporaryError
from music_genre.store import signals

Task = TypeVar("Task")
Result = TypeVar("Result")

QUEUED = 2
"""Tasks that a worker holds while many wait: the one it does, and the next, ready at once."""
TRIES = 2


@dataclass(frozen=True)
class Failure:
    """What stands for the result of a task whose worker died."""

    reason: str


@dataclass(eq=False)
class _Worker:
    process: process.BaseProcess
    pipe: connection.Connection
    tasks: deque[int] = field(default_factory=deque)
    """Numbers of the tasks it holds, in the order of its work."""


class _Pool(Generic[Task, Result]):
    def __init__(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        seconds: Callable[[Task], float],
        n_workers: int,
    ) -> None:
        self.function, self.tasks, self.seconds = function, tasks, seconds
        self.n_workers = min(n_workers, len(tasks))
        self.stopping = mmap.mmap(-1, 1)
        """Shared with the workers; not zero: begin nothing more."""
        self.waiting = deque(range(len(tasks)))
        self.suspects: deque[int] = deque()
        """Tasks whose worker died once; each is tried again alone."""
        self.tries: dict[int, int] = {}
        self.workers: list[_Worker] = []

    def run(self) -> Iterator[tuple[int, Result | Failure]]:
        for _ in range(self.n_workers):
            self.start_worker()
        while self.workers:
            for ready in connection.wait([worker.pipe for worker in self.workers]):
                worker = next(each for each in self.workers if each.pipe is ready)
                outcome = self.receive(worker)
                if outcome:
                    yield outcome

    def start_worker(self) -> None:
        """Fork a worker: it shares the imports, the filters and the tasks, so takes numbers."""
        ours, theirs = get_context("fork").Pipe()
        inherited = [ours, *(worker.pipe for worker in self.workers)]
        process = get_context("fork").Process(
            target=self.work, args=(theirs, inherited), daemon=True
        )
        process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self.workers.append(worker)
        self.feed(worker)

    def feed(self, worker: _Worker) -> None:
        """Give a worker its next tasks; let it end where there are none."""
        if self.suspects and not worker.tasks:
            self.give(worker, self.suspects.popleft())
        elif not any(number in self.tries for number in worker.tasks):
            # The last tasks go to whoever is free.
            most = QUEUED if len(self.waiting) > self.n_workers else 1
            while self.waiting and len(worker.tasks) < most:
                self.give(worker, self.waiting.popleft())
        if not worker.tasks:
            self.dismiss(worker)

    def give(self, worker: _Worker, number: int) -> None:
        worker.tasks.append(number)
        with suppress(OSError):  # it has just died, as `receive` will find
            worker.pipe.send(number)

    def dismiss(self, worker: _Worker) -> None:
        worker.pipe.close()
        worker.process.join()
        self.workers.remove(worker)

    def receive(self, worker: _Worker) -> tuple[int, Result | Failure] | None:
        """Take what a worker has to say: a result, an error, or that it is dead.

        Raises:
            TemporaryError: it was killed, perhaps for memory.
            Exception: what the function raised.
        """
        try:
            done, result = worker.pipe.recv()
        except (EOFError, OSError):
            return self.bury(worker)
        if not done:
            raise result
        number = worker.tasks.popleft()
        self.feed(worker)
        return number, result

    def bury(self, worker: _Worker) -> tuple[int, Failure] | None:
        """Replace a dead worker; its task failed or, the first time, is tried again alone."""
        number, *untouched = worker.tasks
        self.waiting.extendleft(reversed(untouched))
        self.dismiss(worker)
        status = worker.process.exitcode or 0
        if -status in (signal.SIGKILL, signal.SIGTERM):
            raise TemporaryError(
                "a worker process was killed, perhaps for memory; run again, or with fewer "
                "--workers"
            )
        self.tries[number] = self.tries.get(number, 0) + 1
        hopeless = -status == signal.SIGXCPU or self.tries[number] == TRIES
        if not hopeless:
            self.suspects.append(number)
        if self.waiting or self.suspects:
            self.start_worker()
        if hopeless:
            return number, Failure(_why(status, self.seconds(self.tasks[number])))
        return None

    def end(self) -> None:
        """Let every worker finish the task in its hands, so that none is left half-written."""
        self.stopping[0] = 1
        for worker in [*self.workers]:
            self.dismiss(worker)

    def work(self, pipe: connection.Connection, inherited: list[connection.Connection]) -> None:
        """Do tasks by their numbers until there are no more: the life of a worker."""
        _begin()
        # A pipe ends when nobody holds its other end; the parent's ends came along with the fork.
        for each in inherited:
            each.close()
        while True:
            try:
                task = self.tasks[pipe.recv()]
            except (EOFError, OSError):
                return
            if self.stopping[0]:
                return
            _limit_processor_time(self.seconds(task))
            answer = self.answer(task)
            with suppress(OSError):  # nobody wants it any more, as the next `recv` will find
                pipe.send(answer)

    def answer(self, task: Task) -> tuple[bool, Result | Exception]:
        """Return whether a task was done, and its result or error."""
        try:
            return True, self.function(task)
        except Exception as error:
            error.add_note(traceback.format_exc())
            return False, error


def run(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    n_workers: int,
    seconds: Callable[[Task], float],
) -> Iterator[tuple[int, Result | Failure]]:
    """Do each task in one of several processes.

    This process must have no threads. There is always a worker, so that this process survives
    whatever a task does.

    Args:
        function: its results and errors must be picklable.
        tasks: need not be.
        n_workers: processes at most.
        seconds: processor time that a task may take; time spent waiting for a disk is free.

    Yields:
        (number of the task, its result or why its process died), in the order of completion.

    Raises:
        TemporaryError: a worker was killed from outside.
        Exception: what the function raised, once the other workers have finished their tasks.
    """
    pool = _Pool(function, tasks, seconds, n_workers)
    try:
        yield from pool.run()
    finally:
        pool.end()


def _why(status: int, seconds: float) -> str:
    if status >= 0:
        return f"its decoder ended the process (exit code {status})"
    name = signal.Signals(-status).name
    if name == "SIGXCPU":
        return f"its decoder hung: it took more than {seconds:.0f} s of processor time"
    return f"its decoder crashed ({name})"


def _begin() -> None:
    """End by the default signals, and with the parent; leave no core dump of a crash.

    Where the parent died before this, the worker ends as its pipe does.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Decoders speak of damage there without naming the file; results and errors take the pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signals.set_parent_death_signal(signal.SIGTERM)


def _limit_processor_time(seconds: float) -> None:
    """Let the kernel end this process (SIGXCPU) after so much more processor time."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(time.process_time() + seconds) + 1
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
