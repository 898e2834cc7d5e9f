"""The Horovod backend: each gang is a Horovod world of its own, made from its communicator and shut down at its end.

The only file that imports Horovod.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import horovod.torch as hvd  # type: ignore[import-untyped]
import torch
from horovod.common.exceptions import HorovodInternalError  # type: ignore[import-untyped]

from nord_hpc.data_parallel import GangPlace, OpenGang
from nord_hpc.errors import GangBroken

logger = logging.getLogger(__name__)

CYCLE_MILLISECONDS = "0.5"
"""Pause of Horovod's background loop; its own 1 ms and above is felt in the steps of small networks."""


class HorovodBackend:
    """Opens Horovod worlds, one after the other, in one process.

    Args:
        timeout_seconds: a member that keeps its partners waiting for longer breaks the gang.
    """

    name = "horovod"

    def __init__(self, *, timeout_seconds: int = 120) -> None:
        self._timeout_seconds = timeout_seconds

    def open(self, gang: GangPlace) -> OpenGang:
        if gang.communicator is None:
            raise ValueError("a Horovod gang needs a communicator")
        _set_environment(self._timeout_seconds)
        if hvd.is_initialized():  # init would silently keep the old world
            hvd.shutdown()
        try:
            hvd.init(comm=gang.communicator)
        except (HorovodInternalError, RuntimeError, ValueError) as error:
            hvd.shutdown()
            raise GangBroken(f"Horovod did not start: {error}") from error
        if (hvd.rank(), hvd.size()) != (gang.rank, gang.size):
            found = f"rank {hvd.rank()} of {hvd.size()}"
            hvd.shutdown()
            raise GangBroken(f"Horovod started as {found}, not as rank {gang.rank} of {gang.size}")
        return HorovodGang(gang)


class HorovodGang(OpenGang):
    """One Horovod world. One tensor per operation, so that fusion cannot change the order of additions."""

    name = "horovod"

    def __init__(self, gang: GangPlace) -> None:
        self.rank = gang.rank
        self.size = gang.size
        self._open = True

    def all_gather(self, values_K: torch.Tensor) -> torch.Tensor:
        name = _name("gather", values_K)
        gathered: torch.Tensor = self._guarded(lambda: hvd.allgather(values_K.detach().unsqueeze(0), name=name))
        return gathered

    def all_reduce_sum_(self, values_K: torch.Tensor) -> None:
        name = _name("sum", values_K)
        self._guarded(lambda: hvd.allreduce_(values_K.detach(), op=hvd.Sum, name=name))

    def broadcast_(self, values_K: torch.Tensor, *, root: int) -> None:
        if values_K.numel():
            name = _name("broadcast", values_K)
            self._guarded(lambda: hvd.broadcast_(values_K.detach(), root_rank=root, name=name))

    def close(self) -> None:
        if self._open:
            self._open = False
            hvd.shutdown()

    def _guarded(self, operation: Callable[[], torch.Tensor]) -> torch.Tensor:
        if not self._open:
            raise GangBroken("the gang is closed")
        try:
            return operation()
        except HorovodInternalError as error:
            self.close()
            raise GangBroken(f"a partner of this gang failed or is gone: {error}") from error


def _name(operation: str, values_K: torch.Tensor) -> str:
    """The name under which members find each other's tensor: equal on all members, few in number, one per shape."""
    return f"nord.{operation}.{values_K.dtype}.{values_K.numel()}"


def _set_environment(timeout_seconds: int) -> None:
    """Settings that Horovod reads when it starts; the user's own go first, except the one that crashes re-forming."""
    if os.environ.pop("HOROVOD_FUSION_THRESHOLD", None) is not None:
        logger.warning("HOROVOD_FUSION_THRESHOLD is ignored: with it Horovod cannot be started twice in one process")
    os.environ.setdefault("HOROVOD_CYCLE_TIME", CYCLE_MILLISECONDS)
    os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", str(max(1, timeout_seconds // 2)))
    os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(timeout_seconds))
