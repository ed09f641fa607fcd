"""Worker processes for tasks that can crash or hang, such as decoding damaged files.

If a task hangs, or crashes its worker twice, only that task fails; its `Failure` gives the reason.
A new worker does the remaining tasks.
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
"""Maximum number of tasks that a worker has at a time: one running, and one waiting."""
TRIES = 2


@dataclass(frozen=True)
class Failure:
    """Returned instead of a result if a task failed, for example because its worker died."""

    reason: str


@dataclass(eq=False)
class _Worker:
    process: process.BaseProcess
    pipe: connection.Connection
    tasks: deque[int] = field(default_factory=deque)
    """Numbers of the worker's tasks, in the order of execution."""


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
        """One byte, shared with the workers. If it is not zero, they start no more tasks."""
        self.waiting = deque(range(len(tasks)))
        self.suspects: deque[int] = deque()
        """Tasks whose worker died once. Each task is retried by a worker that has no other task."""
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
        """Fork a worker. The fork copies the list of tasks, so only task numbers are sent later."""
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
        """Give a worker its next tasks; end the worker if no task is left for it."""
        if self.suspects and not worker.tasks:
            self.give(worker, self.suspects.popleft())
        elif not any(number in self.tries for number in worker.tasks):
            # Do not give out the last tasks in advance, so that any free worker can take them.
            most = QUEUED if len(self.waiting) > self.n_workers else 1
            while self.waiting and len(worker.tasks) < most:
                self.give(worker, self.waiting.popleft())
        if not worker.tasks:
            self.dismiss(worker)

    def give(self, worker: _Worker, number: int) -> None:
        worker.tasks.append(number)
        with suppress(OSError):  # the worker has just died; `receive` will notice
            worker.pipe.send(number)

    def dismiss(self, worker: _Worker) -> None:
        worker.pipe.close()
        worker.process.join()
        self.workers.remove(worker)

    def receive(self, worker: _Worker) -> tuple[int, Result | Failure] | None:
        """Receive a worker's result or error; if the worker is dead, replace it.

        Raises:
            TemporaryError: the worker was killed, perhaps for lack of memory.
            Exception: the error that the function raised.
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
        """Replace a dead worker; schedule a retry of its current task, or return a `Failure`."""
        number, *untouched = worker.tasks
        self.waiting.extendleft(reversed(untouched))
        self.dismiss(worker)
        status = worker.process.exitcode or 0
        if -status in (signal.SIGKILL, signal.SIGTERM):
            raise TemporaryError(
                "a worker process was killed, perhaps because memory ran out; run the command "
                "again, with fewer --workers if the command has this option"
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
        """Let every worker finish its current task, so that no output is left half-written."""
        self.stopping[0] = 1
        for worker in [*self.workers]:
            self.dismiss(worker)

    def work(self, pipe: connection.Connection, inherited: list[connection.Connection]) -> None:
        """Run as a worker: receive task numbers and do these tasks until the pipe is closed."""
        _begin()
        # `recv` notices a closed pipe only after every process has closed the other end. The fork
        # gave this process copies of the parent's ends, so close them.
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
            with suppress(OSError):  # the parent closed the pipe; the next `recv` will notice
                pipe.send(answer)

    def answer(self, task: Task) -> tuple[bool, Result | Exception]:
        """Do a task; return whether it succeeded, and its result or error."""
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

    The calling process must have no threads, because it is forked. Even a single task is done in a
    worker, so that a crash of the task does not end the calling process.

    Args:
        function: does one task; its results and errors must be picklable.
        tasks: need not be picklable.
        n_workers: the maximum number of processes.
        seconds: returns a task's limit in CPU seconds; waiting for a disk does not count.

    Yields:
        (task number, result), in the order of completion. The result is a `Failure` if the task
        hung or crashed.

    Raises:
        TemporaryError: a worker was killed from outside.
        Exception: the error that `function` raised. It is raised here after the other workers
            have finished their current tasks.
    """
    pool = _Pool(function, tasks, seconds, n_workers)
    try:
        yield from pool.run()
    finally:
        pool.end()


def _why(status: int, seconds: float) -> str:
    if status >= 0:
        return f"its decoder exited (exit code {status})"
    name = signal.Signals(-status).name
    if name == "SIGXCPU":
        return f"its decoder hung: it took more than {seconds:.0f} s of processor time"
    return f"its decoder crashed ({name})"


def _begin() -> None:
    """Let SIGTERM or the parent's death end this worker; ignore SIGINT and write no core dumps.

    If the parent died before this call, the worker ends because its pipe is closed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Discard stderr: decoders report damage there without naming the file. Results and errors are
    # sent through the pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signals.set_parent_death_signal(signal.SIGTERM)


def _limit_processor_time(seconds: float) -> None:
    """Have the kernel end this process (SIGXCPU) after this many more CPU seconds."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(time.process_time() + seconds) + 1
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
