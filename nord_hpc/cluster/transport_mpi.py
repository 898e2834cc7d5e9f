"""The MPI transport: the master's end, the worker's end that mirrors it, and gangs made of communicators.

The only file that knows COMM_WORLD. Control messages travel over a communicator of their own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from mpi4py import MPI

from nord_hpc.cluster import launch, messages, worker
from nord_hpc.cluster.events import RankLost
from nord_hpc.cluster.gangs import MOST_ASSIGNED
from nord_hpc.cluster.messages import Hello, Report, Setup, Stop, StopWish, Task, TestTask
from nord_hpc.cluster.neighbours import NeighbourWatch
from nord_hpc.cluster.polling import wait_until
from nord_hpc.cluster.processes import end_process, own_process
from nord_hpc.errors import GangBroken
from nord_hpc.interfaces import Control, DataParallel, Evaluator

log = logging.getLogger(__name__)

MASTER = 0
TO_WORKER = 1  # master sends tasks; worker receives them
TO_MASTER = 2  # worker sends reports; master receives them
TO_PARTNER = 3  # members of a gang tell each other that they are there

DEATHS = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING)
MEETING_SECONDS = 120.0
"""For all members of a gang to be ready."""
FORMING_SECONDS = 20.0
"""For a gang to form of ready members, which takes milliseconds. A member whose partner dies in the middle of it may
hang in MPI for ever, so it then ends."""
MOST_IN_FLIGHT = 64
"""Messages that may be on their way before it is looked which have arrived, to free them."""
TAKEOVER_SECONDS = 120.0
"""For another master to come, after the death of one, before the workers that wait for it end."""


class MasterLost(Exception):
    """The master has died, and this rank is the one that takes its place."""


class Mailbox:
    """Messages with one tag in each direction, without ever blocking."""

    def __init__(self, world: World, communicator: MPI.Intracomm, *, send_tag: int, receive_tag: int) -> None:
        self._world = world
        self._communicator = communicator
        self._send_tag = send_tag
        self._receive_tag = receive_tag
        self._in_flight: deque[tuple[MPI.Request, bytes]] = deque()
        self._status = MPI.Status()

    def send(self, rank: int, message: Any) -> None:
        """Hand over a message; nothing happens where the receiver has died.

        Not blocking: a busy receiver would stall a blocking send of more than 256 bytes.
        """
        if rank in self._world.failed:
            return
        data = messages.encode(message)
        try:
            request = self._communicator.Isend([data, MPI.BYTE], dest=rank, tag=self._send_tag)
        except MPI.Exception as error:
            self._world.notice(error)
            return
        self._in_flight.append((request, data))
        if len(self._in_flight) > MOST_IN_FLIGHT:  # to look costs as much as to send
            self._forget_sent()

    def arrived(self) -> bool:
        """Whether a message is there, or a rank has died since the last look."""
        try:
            return self._communicator.Iprobe(source=MPI.ANY_SOURCE, tag=self._receive_tag)
        except MPI.Exception as error:
            self._world.notice(error)
            return True

    def receive_all(self) -> Iterator[tuple[int, Any]]:
        """What has arrived, with the rank of its sender."""
        while True:
            try:
                found = self._communicator.Improbe(source=MPI.ANY_SOURCE, tag=self._receive_tag, status=self._status)
            except MPI.Exception as error:
                self._world.notice(error)
                continue
            if found is None:
                return
            data = bytearray(self._status.Get_count(MPI.BYTE))
            source = self._status.Get_source()
            try:
                found.Recv([data, MPI.BYTE])
            except MPI.Exception as error:  # its sender died in the middle
                self._world.notice(error)
                continue
            yield source, messages.decode(data)

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything sent has been taken; returns whether it was."""

        def sent() -> bool:
            self._forget_sent()
            return not self._in_flight

        return wait_until(sent, timeout_seconds)

    def _forget_sent(self) -> None:
        while self._in_flight:
            try:
                if not self._in_flight[0][0].Test():
                    return
            except MPI.Exception as error:
                self._world.notice(error)
            self._in_flight.popleft()


class World:
    """The ranks that the launcher started, with the communicator of the control messages.

    Attributes:
        survives_deaths: whether the MPI lets the others go on when a rank dies.
        failed: ranks that are known to have died.
        processes: of all ranks, by rank.
    """

    def __init__(self) -> None:
        self.survives_deaths = launch.survives_deaths()
        try:
            self._control = MPI.COMM_WORLD.Dup()
            self._gangs = MPI.COMM_WORLD.Dup()
            self.processes = self._control.allgather(own_process())
        except MPI.Exception as error:
            if not self.survives_deaths or error.Get_error_class() not in DEATHS:
                raise
            log.error("a rank died while MPI started; rank %d ends, too", MPI.COMM_WORLD.Get_rank())
            os._exit(1)
        self._kept: dict[int, MPI.Intracomm] = {}
        self._met: set[tuple[int, str]] = set()
        self.rank: int = self._control.Get_rank()
        self.size: int = self._control.Get_size()
        self.failed: set[int] = set()
        if self.survives_deaths:
            NeighbourWatch(self.processes, self.rank).start()

    def mailbox(self, *, master: bool) -> Mailbox:
        """That of the master, or that of a worker."""
        send, receive = (TO_WORKER, TO_MASTER) if master else (TO_MASTER, TO_WORKER)
        return Mailbox(self, self._control, send_tag=send, receive_tag=receive)

    def notice(self, error: MPI.Exception) -> None:
        """Take in which ranks have died, where that is what the error says; else raise it."""
        if not self.survives_deaths or error.Get_error_class() not in DEATHS:
            raise error
        everybody = self._control.Get_group()
        dead = self._control.Get_failed()
        places = list(range(dead.Get_size()))
        self.failed |= set(MPI.Group.Translate_ranks(dead, places, everybody))
        self._control.Ack_failed()
        dead.Free()
        everybody.Free()

    def meet(self, ranks: tuple[int, ...], *, key: str, control: Control) -> None:
        """Wait for all partners, so that none enters a collective operation whose other members have died.

        Raises:
            GangBroken: one has.
        """
        others = [rank for rank in ranks if rank != self.rank]
        partners = Mailbox(self, self._control, send_tag=TO_PARTNER, receive_tag=TO_PARTNER)
        for rank in others:
            partners.send(rank, key)

        def all_there() -> bool:
            if partners.arrived():
                self._met |= set(partners.receive_all())
            gone = self.failed.intersection(others)
            if gone:
                raise GangBroken(f"rank {min(gone)} has died")
            return all((rank, key) in self._met for rank in others)

        ends = time.monotonic() + MEETING_SECONDS
        while not wait_until(all_there, 0.2):
            control.check()
            if time.monotonic() > ends:
                raise GangBroken(f"the partners did not come within {MEETING_SECONDS:.0f} s")
        self._met -= {(rank, key) for rank in others}

    def gang_communicator(self, ranks: tuple[int, ...], *, tag: int, kept: int | None) -> MPI.Intracomm:
        """A communicator of these ranks alone; collective among them.

        Args:
            kept: number of one that is made once and kept; None for a fresh one, to be freed.
        """
        if kept is not None and kept in self._kept:
            return self._kept[kept]
        parent = self._gangs if kept is None else MPI.COMM_WORLD
        group = parent.Get_group()
        members = group.Incl(ranks)
        try:
            if kept is None:
                return self._gangs.Create_group(members, tag=tag)
            # Works after deaths, too, but costs more the more there are.
            communicator = MPI.Intracomm.Create_from_group(members, f"nord_hpc-{kept}")
            self._kept[kept] = communicator
            return communicator
        finally:
            members.Free()
            group.Free()

    def forget_communicator(self, kept: int | None) -> None:
        """One whose gang broke is not used again; to free it is collective, and partners may be gone."""
        if kept is not None:
            self._kept.pop(kept, None)

    def abort(self, code: int) -> None:
        """End all ranks at once."""
        if self.survives_deaths:
            os._exit(code)  # Abort does not end the job then; this rank's death does what is needed
        MPI.COMM_WORLD.Abort(code)


class MpiTransport:
    """The master's end. See `nord_hpc.interfaces.Transport`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._mailbox = world.mailbox(master=True)
        self._told: set[int] = set(world.failed)
        self._workers = tuple(rank for rank in range(world.size) if rank != world.rank and rank not in world.failed)

    def worker_ranks(self) -> tuple[int, ...]:
        return self._workers

    def now(self) -> float:
        return time.time()

    def send(self, rank: int, message: Any) -> None:
        self._mailbox.send(rank, message)

    def receive(self, timeout_seconds: float) -> Iterator[tuple[int, Any]]:
        if wait_until(self._mailbox.arrived, timeout_seconds):
            yield from self._mailbox.receive_all()
            for rank in sorted(self._world.failed - self._told):
                self._told.add(rank)
                yield rank, RankLost(rank, f"rank {rank} died")

    def expel(self, rank: int) -> None:
        """End the process of a rank on this host; those of other hosts are left to the launcher."""
        end_process(self._world.processes[rank])

    def flush(self, timeout_seconds: float) -> bool:
        return self._mailbox.flush(timeout_seconds)


class MpiGang:
    """One trial's gang as a member sees it. See `nord_hpc.interfaces.Gang`."""

    def __init__(self, world: World, task: Task, connect: worker.Connect, control: Control) -> None:
        self.rank = task.ranks.index(world.rank)
        self.size = len(task.ranks)
        self.key = f"{task.epoch}-{task.trial.number}-{task.attempt}"
        self.communicator: MPI.Intracomm | None = None
        self._world = world
        self._task = task
        self._connect = connect
        self._control = control

    @contextlib.contextmanager
    def connect(self) -> Iterator[DataParallel]:
        """Open the backend over the gang's communicator.

        After a failure the communicator is left behind: to free it is collective, and partners may be gone.
        """
        kept = self._task.communicator
        try:
            data_parallel = self._form(kept)
            try:
                yield data_parallel
            finally:
                data_parallel.close()
        except MPI.Exception as error:
            self._world.forget_communicator(kept)
            raise GangBroken(f"MPI: {error}") from error
        except BaseException:
            self._world.forget_communicator(kept)
            raise
        if self.communicator is not None and kept is None:
            self.communicator.Free()

    def _form(self, kept: int | None) -> DataParallel:
        if self.size == 1:
            return self._connect(self)
        self._connect.prepare(self.size)
        if self._world.survives_deaths:
            self._world.meet(self._task.ranks, key=self.key, control=self._control)
        with _ends_after(FORMING_SECONDS, applies=self._world.survives_deaths):
            tag = self._task.trial.number % 16384
            self.communicator = self._world.gang_communicator(self._task.ranks, tag=tag, kept=kept)
            return self._connect(self)


@contextlib.contextmanager
def _ends_after(seconds: float, *, applies: bool) -> Iterator[None]:
    """End this process if the body takes longer: it hangs in MPI, and for the others it is best dead."""

    def end() -> None:
        log.error("this rank hung in forming a gang for %.0f s, and ends", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    if applies:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


class MpiWorker:
    """The worker's end: waits for tasks, evaluates them, reports; to another master when the first has died."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._mailbox = world.mailbox(master=False)
        self._inbox: deque[Any] = deque()
        self._stop: Stop | None = None
        self._host = world.processes[world.rank].host
        self._machine: dict[str, Any] = {}
        self._master = MASTER
        self._setup: Setup | None = None
        self._n_active = world.size
        self._current: Task | None = None
        self._orphaned_at: float | None = None
        self._wish: str | None = None
        # What the master may not have seen when it died: it never has more than that many out at one rank.
        self._reports: deque[Report] = deque(maxlen=MOST_ASSIGNED + 1)

    def setup(self) -> Setup:
        """Wait for the master's first message."""
        while self._setup is None:
            if wait_until(self._mailbox.arrived, 1.0):
                self._take_in()
            self._check_master()
        return self._setup

    def serve(
        self,
        evaluator: Evaluator,
        *,
        connect: worker.Connect,
        machine: dict[str, Any],
        n_active: int,
    ) -> None:
        """Evaluate tasks until the master says stop.

        Args:
            connect: opens the data-parallel backend of a gang.
            n_active: workers that are no spares; see `Coordinator`.

        Raises:
            MasterLost: this rank is to take the master's place.
        """
        self._machine = machine
        self._n_active = n_active
        self._say_hello()
        while self._stop is None:
            message = self._next()
            if isinstance(message, Task):
                self._current = message
                report = self._evaluate(message, evaluator, connect)
                self._current = None
                self._check_master()
                self._reports.append(report)
                self._mailbox.send(self._master, report)
            elif isinstance(message, TestTask):
                control = worker.WorkerControl(1e9, self._stopped)
                report_of_test = worker.test(message, evaluator=evaluator, control=control, rank=self._world.rank)
                self._mailbox.send(self._master, report_of_test)
        for message in self._inbox:
            if isinstance(message, Task):
                self._mailbox.send(self._master, worker.stopped(message, rank=self._world.rank))
        self._mailbox.flush(5.0)

    def wish_to_stop(self, reason: str) -> None:
        """Ask the master to stop the search, at the next look at messages. May be called by a signal's handler."""
        self._wish = reason

    def expel_master(self) -> None:
        """End the process of the master that was lost: it may be stopped and not dead, and hold the journal."""
        end_process(self._world.processes[self._master])

    def _evaluate(self, task: Task, evaluator: Evaluator, connect: worker.Connect) -> Report:
        control = worker.WorkerControl(task.limit_seconds, self._stopped)
        return worker.evaluate(
            task,
            evaluator=evaluator,
            gang=MpiGang(self._world, task, connect, control),
            control=control,
            rank=self._world.rank,
            host=self._host,
        )

    def _next(self) -> Any:
        while not self._inbox and self._stop is None:
            if wait_until(self._mailbox.arrived, 1.0):
                self._take_in()
            self._pass_on_wish()
            self._check_master()
        return self._inbox.popleft() if self._inbox else self._stop

    def _stopped(self) -> bool:
        """Whether a trial in progress is to be left; looks at what has arrived."""
        self._pass_on_wish()
        if self._mailbox.arrived():
            self._take_in()
        return self._stop is not None or self._succeeds()

    def _pass_on_wish(self) -> None:
        if self._wish is not None:
            reason, self._wish = self._wish, None
            self._mailbox.send(self._master, StopWish(self._world.rank, reason))

    def _take_in(self) -> None:
        for source, message in self._mailbox.receive_all():
            if isinstance(message, Setup):
                self._take_setup(source, message)
            elif source != self._master:
                continue  # of a master that others have given up
            elif isinstance(message, Stop):
                self._stop = message
            else:
                self._inbox.append(message)

    def _take_setup(self, source: int, setup: Setup) -> None:
        """A master's first message; a later master is told again what the one before may not have seen."""
        if self._setup is not None and setup.epoch <= self._setup.epoch:
            return
        known = self._setup is not None
        self._master, self._setup = source, setup
        if known:
            for report in self._reports:
                self._mailbox.send(source, report)
            self._say_hello()

    def _say_hello(self) -> None:
        tasks = [self._current, *self._inbox]
        busy = tuple((task.trial.number, task.attempt) for task in tasks if isinstance(task, Task))
        self._mailbox.send(self._master, Hello(self._world.rank, self._host, self._machine, busy))

    def _check_master(self) -> None:
        """Without a master: take its place, or wait for another one; not for ever."""
        if self._master not in self._world.failed:
            self._orphaned_at = None
        elif self._succeeds():
            raise MasterLost
        else:
            self._orphaned_at = self._orphaned_at or time.monotonic()
            if self._setup is None or time.monotonic() - self._orphaned_at > TAKEOVER_SECONDS:
                log.error("the master has died, and no other one came")
                os._exit(1)

    def _succeeds(self) -> bool:
        """Whether the master has died and this rank takes its place: the last spare, else the first worker."""
        if self._master not in self._world.failed or self._setup is None or self._setup.folder is None:
            return False
        left = [r for r in range(self._world.size) if r != MASTER and r not in self._world.failed]
        successor = left[-1] if len(left) > self._n_active else left[0]
        return successor == self._world.rank
