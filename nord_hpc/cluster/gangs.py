"""The worker ranks: which are idle, which form the next gang, and which may take a short trial in advance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_ASSIGNED = 16
WAITING_SECONDS = 0.02
"""A rank takes a further trial of its own in advance while what it has takes less than this, so that trials which are
shorter than a message and an fsync keep it busy, and no longer one ever waits behind another."""


@dataclass(slots=True)
class Worker:
    """A worker rank as the master knows it.

    Attributes:
        assigned: number to predicted seconds of its trials; the first is being evaluated, the others wait at the rank.
        free_at: when it is expected to be done with them.
        limits: for each of them, seconds after its begin when the rank is taken to hang.
        deadline: when that is for the first of them.
    """

    rank: int
    host: str
    assigned: dict[int, float] = field(default_factory=dict)
    limits: dict[int, float] = field(default_factory=dict)
    free_at: float = 0.0
    deadline: float = 0.0

    def assign(self, number: int, *, seconds: float, limit_seconds: float, at: float) -> None:
        self.free_at = (max(self.free_at, at) if self.assigned else at) + seconds
        if not self.assigned:
            self.deadline = at + limit_seconds
        self.assigned[number] = seconds
        self.limits[number] = limit_seconds

    def release(self, number: int, *, at: float) -> None:
        if self.assigned.pop(number, None) is not None:
            del self.limits[number]
            self.deadline = at + next(iter(self.limits.values()), 0.0)

    def takes_more(self) -> bool:
        return len(self.assigned) < MOST_ASSIGNED and sum(self.assigned.values()) < WAITING_SECONDS


class RankPool:
    """The workers that have said hello and are not lost, in the order of their ranks.

    Args:
        n_active: that get trials at a time; the ranks behind these are spares, which take the places of lost ones.
    """

    def __init__(self, n_active: int | None = None) -> None:
        self._n_active = n_active
        self._workers: dict[int, Worker] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, rank: int) -> bool:
        return rank in self._workers

    def add(self, rank: int, host: str) -> None:
        self._workers[rank] = Worker(rank, host)
        self._workers = dict(sorted(self._workers.items()))

    def remove(self, rank: int) -> list[int]:
        """Strike a rank off; returns the trials that it had, the one in evaluation first."""
        worker = self._workers.pop(rank, None)
        return [] if worker is None else list(worker.assigned)

    def n_idle(self) -> int:
        return sum(not worker.assigned for worker in self._active())

    def n_busy(self) -> int:
        return sum(bool(worker.assigned) for worker in self._workers.values())

    def assign(self, rank: int, number: int, *, seconds: float, limit_seconds: float, at: float) -> None:
        """Take note of a trial that a rank has already."""
        self._workers[rank].assign(number, seconds=seconds, limit_seconds=limit_seconds, at=at)

    def expect_back(self, rank: int, *, by: float) -> None:
        """The rank has nothing left to do but to say so."""
        if rank in self._workers:
            self._workers[rank].deadline = min(self._workers[rank].deadline, by)

    def overdue(self, at: float) -> list[int]:
        """Busy ranks whose deadline has passed."""
        return [rank for rank, worker in self._workers.items() if worker.assigned and at > worker.deadline]

    def take(
        self, size: int, number: int, *, seconds: float, limit_seconds: float, at: float
    ) -> tuple[int, ...] | None:
        """Assign a trial to `size` idle ranks, on one host where one has that many; a short one also to a busy rank.

        Args:
            seconds: the predicted time of the trial.
            limit_seconds: after which the ranks are taken to hang.

        Returns:
            The ranks, or None if too few are free.
        """
        idle = [worker for worker in self._active() if not worker.assigned]
        chosen = self._on_one_host(idle, size) or idle[:size]
        if size == 1 and not chosen and seconds < WAITING_SECONDS:
            open_ranks = [worker for worker in self._active() if worker.takes_more()]
            chosen = sorted(open_ranks, key=lambda worker: len(worker.assigned))[:1]
        if len(chosen) < size:
            return None
        for worker in chosen:
            worker.assign(number, seconds=seconds, limit_seconds=limit_seconds, at=at)
        return tuple(worker.rank for worker in chosen)

    def may_overtake(self, size: int, *, seconds: float, first_size: int, at: float) -> bool:
        """Whether a trial may start before the first one, which waits for `first_size` ranks, and not delay it.

        The rule of EASY backfilling (Lifka 1995): it ends before the first one can begin, or the ranks that it takes
        are not needed then. So small trials fill the gaps, and a large one is never overtaken for ever.
        """
        free_at = sorted(max(at, worker.free_at) if worker.assigned else at for worker in self._active())
        if first_size > len(free_at):
            return True
        begins = free_at[first_size - 1]
        to_spare = sum(moment <= begins for moment in free_at) - first_size
        return at + seconds <= begins or size <= to_spare

    def release(self, rank: int, number: int, *, at: float) -> None:
        """The rank says that it is done with that trial; the next one that it has begins now."""
        worker = self._workers.get(rank)
        if worker is not None:
            worker.release(number, at=at)

    def _active(self) -> list[Worker]:
        return list(self._workers.values())[: self._n_active]

    @staticmethod
    def _on_one_host(idle: Sequence[Worker], size: int) -> list[Worker] | None:
        by_host: dict[str, list[Worker]] = {}
        for worker in idle:
            by_host.setdefault(worker.host, []).append(worker)
        # The host with the fewest idle ranks that suffice, so that larger gangs find room on the others.
        fitting = [group for group in by_host.values() if len(group) >= size]
        return min(fitting, key=len)[:size] if fitting else None
