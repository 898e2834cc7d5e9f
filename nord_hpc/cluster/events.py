"""What reaches the coordinator, beside the messages of workers, and what it wants done."""

from __future__ import annotations

from dataclasses import dataclass

from nord_hpc.cluster.messages import Hello, Report, StopWish, TestReport, ToWorker
from nord_hpc.trial import Json


@dataclass(frozen=True, slots=True)
class RankLost:
    """Event: a rank is gone for good."""

    rank: int
    reason: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Event: the user, the scheduler of the machine or the hours budget wants the search to stop."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Event: time has passed."""


Event = Hello | Report | TestReport | StopWish | RankLost | StopRequested | Tick


@dataclass(frozen=True, slots=True)
class Record:
    """Action: append this to the journal."""

    record: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Send:
    """Action: send this message, once all records before it are durable."""

    rank: int
    message: ToWorker


@dataclass(frozen=True, slots=True)
class DropWeights:
    """Action: the weights of this trial are not among the best any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Expel:
    """Action: end this rank's process if it still lives; it is lost to the search."""

    rank: int


@dataclass(frozen=True, slots=True)
class End:
    """Action: the search ends here; `state` is finished, interrupted, or lost where too few workers are left."""

    state: str
    reason: str | None


Action = Record | Send | DropWeights | Expel | End
