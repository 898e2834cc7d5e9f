"""What master and workers say to each other, and its form on the wire. Every message names the master's epoch."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

from nord_hpc.errors import NordError
from nord_hpc.trial import Json, Outcome, Trial

LARGEST_MESSAGE = 2**30
"""Bytes; MPI counts are 32-bit, and nothing that a master says comes near this: data sets travel by files."""


@dataclass(frozen=True, slots=True)
class Setup:
    """Master to every worker, first of all: the run folder to work for, or None when there is nothing to do."""

    epoch: int
    folder: str | None


@dataclass(frozen=True, slots=True)
class Task:
    """Master to each member of a gang: evaluate this trial together.

    Attributes:
        ranks: in gang order; the first leads.
        limit_seconds: after which the attempt ends itself as failed.
        keep_above: the score from which on the trained weights are worth keeping; None: in any case.
        communicator: number of the gang's communicator, which its members keep for their later trials together; None
            for one that is made for this trial alone, as can be done while no rank has died.
    """

    epoch: int
    trial: Trial
    attempt: int
    ranks: tuple[int, ...]
    limit_seconds: float
    keep_above: float | None
    communicator: int | None = None


@dataclass(frozen=True, slots=True)
class TestTask:
    """Master to one worker: score this completed trial on the test part."""

    epoch: int
    trial: Trial


@dataclass(frozen=True, slots=True)
class Stop:
    """Master to every worker: leave a trial in progress, and end."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Hello:
    """Worker to master, also to each later one: ready for tasks.

    Attributes:
        busy: number and attempt of the trials that it has from an earlier master, in evaluation or waiting; what it
            has finished of them was reported again before this.
    """

    rank: int
    host: str
    machine: dict[str, Json]
    busy: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Each member of a gang to the master: this attempt is over here and the rank is idle again.

    Attributes:
        outcome: what became of the trial; None from members that only know that the gang broke.
        broken: why there is no outcome, where partners failed or are gone.
        bad_input: what is wrong with the job itself or this rank's machine; the search cannot go on.
        stopped: there is no outcome because the search stops.
    """

    epoch: int
    rank: int
    number: int
    attempt: int
    outcome: Outcome | None
    broken: str | None = None
    stopped: bool = False
    bad_input: str | None = None


@dataclass(frozen=True, slots=True)
class TestReport:
    """Worker to master: metrics on the test part, or why there are none."""

    epoch: int
    rank: int
    number: int
    metrics: dict[str, Json] | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StopWish:
    """Worker to master: this rank was sent a signal that asks the search to stop."""

    rank: int
    reason: str


ToWorker = Setup | Task | TestTask | Stop
ToMaster = Hello | Report | TestReport | StopWish


class MessageTooLarge(NordError):
    """A message passes the limit; it was not sent."""


def encode(message: Any) -> bytes:
    """A message as bytes. Pickle is used between the ranks of one run alone, never on disk.

    Raises:
        MessageTooLarge: it has more than `LARGEST_MESSAGE` bytes.
    """
    data = pickle.dumps(message, protocol=5)
    if len(data) > LARGEST_MESSAGE:
        kind = type(message).__name__
        raise MessageTooLarge(f"a {kind} message of {len(data)} bytes passes the limit of {LARGEST_MESSAGE} bytes")
    return data


def decode(data: bytes | bytearray | memoryview) -> Any:
    """The message that `encode` was given."""
    return pickle.loads(data)
