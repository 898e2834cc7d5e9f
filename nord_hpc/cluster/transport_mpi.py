"""The MPI transport: the master's end, the worker's end that mirrors it, and gangs made of communicators.

The only file that knows COMM_WORLD. Control messages travel over a communicator of their own.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from mpi4py import MPI

from nord_hpc.cluster import messages, worker
from nord_hpc.cluster.messages import Hello, Setup, Stop, Task, TestTask
from nord_hpc.cluster.polling import wait_until
from nord_hpc.interfaces import DataParallel, Evaluator

log = logging.getLogger(__name__)

MASTER = 0
TO_WORKER = 1  # master sends tasks; worker receives them
TO_MASTER = 2  # worker sends reports; master receives them


class Mailbox:
    """Messages with one tag in each direction, without ever blocking."""

    def __init__(self, communicator: MPI.Intracomm, *, send_tag: int, receive_tag: int) -> None:
        self._communicator = communicator
        self._send_tag = send_tag
        self._receive_tag = receive_tag
        self._in_flight: deque[tuple[MPI.Request, bytes]] = deque()
        self._status = MPI.Status()

    def send(self, rank: int, message: Any) -> None:
        """Hand over a message. Not blocking: a busy receiver would stall a blocking send of more than 256 bytes."""
        data = messages.encode(message)
        request = self._communicator.Isend([data, MPI.BYTE], dest=rank, tag=self._send_tag)
        self._in_flight.append((request, data))
        self._forget_sent()

    def arrived(self) -> bool:
        return self._communicator.Iprobe(source=MPI.ANY_SOURCE, tag=self._receive_tag)

    def receive_all(self) -> Iterator[tuple[int, Any]]:
        """What has arrived, with the rank of its sender."""
        while True:
            found = self._communicator.Improbe(source=MPI.ANY_SOURCE, tag=self._receive_tag, status=self._status)
            if found is None:
                return
            data = bytearray(self._status.Get_count(MPI.BYTE))
            source = self._status.Get_source()
            found.Recv([data, MPI.BYTE])
            yield source, messages.decode(data)

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything sent has been taken; returns whether it was."""

        def sent() -> bool:
            self._forget_sent()
            return not self._in_flight

        return wait_until(sent, timeout_seconds)

    def _forget_sent(self) -> None:
        while self._in_flight and self._in_flight[0][0].Test():
            self._in_flight.popleft()


class World:
    """The ranks that the launcher started, with the communicator of the control messages."""

    def __init__(self) -> None:
        self._control = MPI.COMM_WORLD.Dup()
        self._gangs = MPI.COMM_WORLD.Dup()
        self.rank: int = self._control.Get_rank()
        self.size: int = self._control.Get_size()

    def mailbox(self) -> Mailbox:
        if self.rank == MASTER:
            return Mailbox(self._control, send_tag=TO_WORKER, receive_tag=TO_MASTER)
        return Mailbox(self._control, send_tag=TO_MASTER, receive_tag=TO_WORKER)

    def gang_communicator(self, ranks: tuple[int, ...], *, tag: int) -> MPI.Intracomm:
        """A communicator of these ranks alone; collective among them."""
        group = self._gangs.Get_group()
        members = group.Incl(ranks)
        try:
            return self._gangs.Create_group(members, tag=tag)
        finally:
            members.Free()
            group.Free()

    def abort(self, code: int) -> None:
        """End all ranks at once."""
        MPI.COMM_WORLD.Abort(code)


class MpiTransport:
    """The master's end. See `nord_hpc.interfaces.Transport`."""

    def __init__(self, world: World) -> None:
        self._mailbox = world.mailbox()
        self._workers = tuple(range(1, world.size))

    def worker_ranks(self) -> tuple[int, ...]:
        return self._workers

    def now(self) -> float:
        return time.time()

    def send(self, rank: int, message: Any) -> None:
        self._mailbox.send(rank, message)

    def receive(self, timeout_seconds: float) -> Iterator[tuple[int, Any]]:
        if wait_until(self._mailbox.arrived, timeout_seconds):
            yield from self._mailbox.receive_all()

    def flush(self, timeout_seconds: float) -> bool:
        return self._mailbox.flush(timeout_seconds)


class MpiGang:
    """One trial's gang as a member sees it. See `nord_hpc.interfaces.Gang`."""

    def __init__(self, world: World, task: Task, connect: Callable[[Any], DataParallel]) -> None:
        self.rank = task.ranks.index(world.rank)
        self.size = len(task.ranks)
        self.key = f"{task.epoch}-{task.trial.number}-{task.attempt}"
        self.communicator: MPI.Intracomm | None = None
        self._world = world
        self._task = task
        self._connect = connect

    @contextlib.contextmanager
    def connect(self) -> Iterator[DataParallel]:
        """Open the backend over a fresh communicator; both are gone afterwards.

        After a failure the communicator is left behind: to free it is collective, and partners may be gone.
        """
        if self.size > 1:
            tag = self._task.trial.number % 16384
            self.communicator = self._world.gang_communicator(self._task.ranks, tag=tag)
        data_parallel = self._connect(self)
        try:
            yield data_parallel
        finally:
            data_parallel.close()
        if self.communicator is not None:
            self.communicator.Free()


class MpiWorker:
    """The worker's end: waits for tasks, evaluates them, reports."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._mailbox = world.mailbox()
        self._inbox: deque[Any] = deque()
        self._stop: Stop | None = None
        self._host = socket.gethostname()

    def setup(self) -> Setup:
        """Wait for the master's first message."""
        while True:
            message = self._next()
            if isinstance(message, Setup):
                return message

    def serve(self, evaluator: Evaluator, *, connect: Callable[[Any], DataParallel], machine: dict[str, Any]) -> None:
        """Evaluate tasks until the master says stop.

        Args:
            connect: opens the data-parallel backend of a gang.
        """
        self._mailbox.send(MASTER, Hello(self._world.rank, self._host, machine))
        while self._stop is None:
            message = self._next()
            if isinstance(message, Task):
                self._mailbox.send(MASTER, self._evaluate(message, evaluator, connect))
            elif isinstance(message, TestTask):
                control = worker.WorkerControl(1e9, self._stopped)
                self._mailbox.send(
                    MASTER, worker.test(message, evaluator=evaluator, control=control, rank=self._world.rank)
                )
        for message in self._inbox:
            if isinstance(message, Task):
                self._mailbox.send(MASTER, worker.stopped(message, rank=self._world.rank))
        self._mailbox.flush(5.0)

    def _evaluate(self, task: Task, evaluator: Evaluator, connect: Callable[[Any], DataParallel]) -> messages.Report:
        return worker.evaluate(
            task,
            evaluator=evaluator,
            gang=MpiGang(self._world, task, connect),
            control=worker.WorkerControl(task.limit_seconds, self._stopped),
            rank=self._world.rank,
            host=self._host,
        )

    def _next(self) -> Any:
        while not self._inbox and self._stop is None:
            if wait_until(self._mailbox.arrived, 1.0):
                self._take_in()
        return self._inbox.popleft() if self._inbox else self._stop

    def _stopped(self) -> bool:
        """Whether the master wants a trial in progress to be left; looks at what has arrived."""
        if self._mailbox.arrived():
            self._take_in()
        return self._stop is not None

    def _take_in(self) -> None:
        for _, message in self._mailbox.receive_all():
            if isinstance(message, Stop):
                self._stop = message
            else:
                self._inbox.append(message)
