"""The inline transport: one worker inside the master's own process, without MPI. For `-n 1`, and for debugging."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from nord_hpc.cluster import worker
from nord_hpc.cluster.messages import Hello, Task, TestTask
from nord_hpc.interfaces import DataParallel, Evaluator

RANK = 1


class InlineGang:
    """A gang of one. See `nord_hpc.interfaces.Gang`."""

    rank = 0
    size = 1

    def __init__(self, connect: Callable[[InlineGang], DataParallel]) -> None:
        self._connect = connect

    @contextlib.contextmanager
    def connect(self) -> Iterator[DataParallel]:
        yield self._connect(self)


class InlineTransport:
    """Evaluates one task at a time, when asked for what has arrived."""

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        connect: Callable[[Any], DataParallel],
        machine: dict[str, Any],
        stopped: Callable[[], bool],
    ) -> None:
        """
        Args:
            connect: opens the data-parallel backend of a gang of one.
            stopped: says whether a trial in progress is to be left.
        """
        self._evaluator = evaluator
        self._connect = connect
        self._stopped = stopped
        self._tasks: deque[Task | TestTask] = deque()
        self._arrived: deque[Any] = deque([Hello(RANK, socket.gethostname(), machine)])

    def worker_ranks(self) -> tuple[int, ...]:
        return (RANK,)

    def now(self) -> float:
        return time.time()

    def send(self, rank: int, message: Any) -> None:
        if isinstance(message, Task | TestTask):
            self._tasks.append(message)

    def expel(self, rank: int) -> None:
        """The one rank is this process itself."""

    def receive(self, timeout_seconds: float) -> Iterator[tuple[int, Any]]:
        if self._arrived:
            yield RANK, self._arrived.popleft()
        elif self._tasks:
            yield RANK, self._evaluate(self._tasks.popleft())
        else:
            time.sleep(timeout_seconds)

    def _evaluate(self, task: Task | TestTask) -> Any:
        if isinstance(task, TestTask):
            return worker.test(
                task, evaluator=self._evaluator, control=worker.WorkerControl(1e9, self._stopped), rank=RANK
            )
        return worker.evaluate(
            task,
            evaluator=self._evaluator,
            gang=InlineGang(self._connect),
            control=worker.WorkerControl(task.limit_seconds, self._stopped),
            rank=RANK,
            host=socket.gethostname(),
        )
