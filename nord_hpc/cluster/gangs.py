"""The worker ranks: which are idle, and which form the next gang."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Worker:
    """A worker rank as the master knows it.

    Attributes:
        busy_with: the number of the trial that it evaluates.
        deadline: when it is taken to hang, if it is still busy.
    """

    rank: int
    host: str
    busy_with: int | None = None
    deadline: float = 0.0


class RankPool:
    """The workers that have said hello and are not lost, in the order of their ranks."""

    def __init__(self) -> None:
        self._workers: dict[int, Worker] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, rank: int) -> bool:
        return rank in self._workers

    def add(self, rank: int, host: str) -> None:
        self._workers[rank] = Worker(rank, host)
        self._workers = dict(sorted(self._workers.items()))

    def remove(self, rank: int) -> None:
        self._workers.pop(rank, None)

    def hosts(self) -> list[str]:
        return sorted({worker.host for worker in self._workers.values()})

    def idle(self) -> list[int]:
        return [rank for rank, worker in self._workers.items() if worker.busy_with is None]

    def overdue(self, at: float) -> list[int]:
        """Busy ranks whose deadline has passed."""
        return [r for r, worker in self._workers.items() if worker.busy_with is not None and at > worker.deadline]

    def take(self, size: int, number: int, *, deadline: float) -> tuple[int, ...] | None:
        """Make `size` idle ranks busy with a trial, on one host where one has that many; None if too few are idle."""
        idle = [worker for worker in self._workers.values() if worker.busy_with is None]
        if len(idle) < size:
            return None
        chosen = self._on_one_host(idle, size) or idle[:size]
        for worker in chosen:
            worker.busy_with = number
            worker.deadline = deadline
        return tuple(worker.rank for worker in chosen)

    def release(self, rank: int, number: int) -> None:
        """The rank says that it is done with that trial."""
        worker = self._workers.get(rank)
        if worker is not None and worker.busy_with == number:
            worker.busy_with = None

    @staticmethod
    def _on_one_host(idle: Sequence[Worker], size: int) -> list[Worker] | None:
        by_host: dict[str, list[Worker]] = {}
        for worker in idle:
            by_host.setdefault(worker.host, []).append(worker)
        # The host with the fewest idle ranks that suffice, so that larger gangs find room on the others.
        fitting = [group for group in by_host.values() if len(group) >= size]
        return min(fitting, key=len)[:size] if fitting else None
