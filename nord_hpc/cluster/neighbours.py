"""Each rank watches the next one on its host, and ends it when it has been stopped for a while.

A process that is stopped (SIGSTOP) is not dead: its partners would wait for it in MPI for as long as it likes. Open
MPI has heart beats against that, but the thread that sends them makes ranks crash while MPI starts (the first beat may
arrive where nothing yet receives it: one start in five, with five ranks on two cores), and on a busy machine they are
missed without reason. So this looks at what the kernel says of the process; its death is then seen as any other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

import psutil  # type: ignore[import-untyped]

from nord_hpc.cluster.processes import Process, end_process, find_process

log = logging.getLogger(__name__)

STOPPED_SECONDS = 2.5
"""For which a rank may be stopped before it is ended."""
LOOK_SECONDS = 0.5


class NeighbourWatch:
    """Looks at the next process on this host that lives.

    Args:
        processes: of all ranks, in the order of the ranks.
        own: rank of this one.
    """

    def __init__(self, processes: Sequence[Process], own: int) -> None:
        following = [*processes[own + 1 :], *processes[:own]]
        self._others = [process for process in following if process.host == processes[own].host]
        self._stopped: Process | None = None
        self._seen = 0.0
        self._looked = 0.0

    def look(self, now: float) -> Process | None:
        """Look once, at time `now` in seconds; returns the process that was ended, if one was."""
        if now - self._looked > 2 * LOOK_SECONDS:
            self._stopped = None  # this process was stopped itself, as all were, or starved
        self._looked = now
        neighbour, stopped = self._next()
        if neighbour is None or not stopped:
            self._stopped = None
        elif neighbour != self._stopped:
            self._stopped, self._seen = neighbour, now
        elif now - self._seen >= STOPPED_SECONDS:
            end_process(neighbour)
            return neighbour
        return None

    def start(self) -> None:
        """Look from now on, in a thread, until the process ends or nobody is left to look at."""
        threading.Thread(target=self._watch, name="neighbour-watch", daemon=True).start()

    def _watch(self) -> None:
        while self._others:
            ended = self.look(time.monotonic())
            if ended is not None:
                log.warning(
                    "process %d on %s was stopped for %.1f s and is ended", ended.pid, ended.host, STOPPED_SECONDS
                )
            time.sleep(LOOK_SECONDS)

    def _next(self) -> tuple[Process | None, bool]:
        """The next process that lives, and whether it is stopped; those that have ended are looked at no more."""
        while self._others:
            found = find_process(self._others[0])
            try:
                status = psutil.STATUS_DEAD if found is None else found.status()
            except psutil.Error:
                status = psutil.STATUS_DEAD
            if status not in (psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE):
                return self._others[0], status == psutil.STATUS_STOPPED
            del self._others[0]
        return None, False
