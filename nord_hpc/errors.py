"""The errors that nord_hpc raises on purpose, each handled in one way; unexpected ones are left to Python."""

from __future__ import annotations


class NordError(Exception):
    """Base of all deliberate errors."""


class BadInput(NordError):
    """The user's job file, command line, data or run folder is wrong.

    The message is one line that says where (file, field), what is wrong, and what to set. The command line prints it
    and ends with exit code 2.
    """


class Infeasible(NordError):
    """A candidate that cannot be built or trained as asked. It costs one trial number and no training.

    Attributes:
        reason: one line that names the layer, and the shapes where shapes are the matter.
        layer: the name of the layer, where there is one.
    """

    def __init__(self, reason: str, *, layer: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.layer = layer


class TrialFailed(NordError):
    """A candidate failed while it was evaluated, in a way that has a name (NaN loss, time-out, out of memory).

    Attributes:
        kind: one of the failure kinds of `nord_hpc.trial.FailureKind`.
    """

    def __init__(self, reason: str, *, kind: str) -> None:
        super().__init__(reason)
        self.kind = kind


class GangBroken(NordError):
    """A partner of this gang failed or is gone, so a collective operation could not end. Says nothing of the cause."""


class SearchStopped(NordError):
    """The search was asked to stop while this trial was being evaluated; the trial will run again after a resume."""


class StoreError(NordError):
    """The run folder holds something that cannot be what this program wrote."""
