"""What the ranks of a world tell of their places, and how fast the members of each gang reach each other.

Needs MPI, and is run by all ranks together; what is wrong with the answers is judged by `placement`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from mpi4py import MPI

from nord_hpc.cluster.placement import Place, Speed
from nord_hpc.errors import BadInput

SMALL_BYTES = 8
LARGE_BYTES = 2**22
WARM_UP = 3
LEAST_ROUNDS = 5
MOST_ROUNDS = 10_000


def survey(place: Place, *, gang: int, seconds: float) -> tuple[list[Place], list[Speed]] | None:
    """Gather the places of all ranks, and measure each gang; the gangs do so at the same time, as in a search.

    Args:
        place: of this rank; its rank and gang are filled in here.
        gang: ranks that form one, counted from rank 1, as rank 0 is the master.
        seconds: for the measurement.

    Returns:
        Places by rank, and the speed of each gang of two or more; on rank 0 alone.
    """
    world = MPI.COMM_WORLD
    own = place.at(rank=world.Get_rank(), gang=None if world.Get_rank() == 0 else (world.Get_rank() - 1) // gang)
    places = world.gather(own, root=0)
    members = MPI.Intracomm(world.Split(MPI.UNDEFINED if own.gang is None else own.gang, own.rank))
    speed: Speed | None = None
    if own.gang is not None and members.Get_size() > 1:
        speed = _measure(members, gang=own.gang, seconds=seconds)
        members.Free()
    speeds = world.gather(speed, root=0)
    if places is None or speeds is None:
        return None
    return list(places), _slowest(speeds)


def world_size() -> int:
    """Ranks that MPI has found."""
    return int(MPI.COMM_WORLD.Get_size())


def _measure(members: MPI.Intracomm, *, gang: int, seconds: float) -> Speed | None:
    """Ping-pong of the first member with the last one; the time limit is the first one's, who tells when it is over."""
    rank, last = members.Get_rank(), members.Get_size() - 1
    if rank not in (0, last):
        return None
    latency = _ping_pong(members, rank == 0, last, n_bytes=SMALL_BYTES, seconds=seconds / 2)
    transfer = _ping_pong(members, rank == 0, last, n_bytes=LARGE_BYTES, seconds=seconds / 2)
    if rank != 0:
        return None
    return Speed(gang, latency_microseconds=latency * 1e6, gigabytes_per_second=LARGE_BYTES / transfer / 1e9)


def _ping_pong(members: MPI.Intracomm, leads: bool, last: int, *, n_bytes: int, seconds: float) -> float:
    """Seconds for one way, the best of all rounds."""
    data, back = bytearray(n_bytes), bytearray(n_bytes)
    best, rounds, ends = float("inf"), 0, time.perf_counter() + seconds
    while True:
        if not leads:
            members.Recv(back, source=0)
            members.Send(back, dest=0)
            if back[0]:
                return 0.0
            continue
        over = rounds >= MOST_ROUNDS or (rounds >= LEAST_ROUNDS and time.perf_counter() > ends)
        data[0] = over
        begin = time.perf_counter()
        members.Send(data, dest=last)
        members.Recv(back, source=last)
        if rounds >= WARM_UP:
            best = min(best, (time.perf_counter() - begin) / 2)
        rounds += 1
        if over:
            return best


def _slowest(speeds: Sequence[Speed | None]) -> list[Speed]:
    return sorted((speed for speed in speeds if speed is not None), key=lambda speed: speed.gang)


def check_gang(gang: int) -> None:
    """Refuse a gang that this world cannot hold.

    Raises:
        BadInput: it has too few workers.
    """
    n_workers = world_size() - 1
    if gang > max(1, n_workers):
        raise BadInput(
            f"there are {n_workers} workers, and a gang needs {gang}; start {gang + 1} ranks or more, or set --gang"
        )
