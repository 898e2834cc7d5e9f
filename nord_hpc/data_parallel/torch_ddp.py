"""The torch.distributed backend: gloo between CPUs, nccl between GPUs, one process group per gang over a kept store."""

from __future__ import annotations

import logging
import socket
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from nord_hpc.data_parallel import GangPlace, OpenGang
from nord_hpc.errors import GangBroken

logger = logging.getLogger(__name__)

KEPT_CLIENTS = 64
"""Connections to the stores of other leaders that a process keeps; the one used longest ago is closed first."""

KEPT_LIVES = 8
"""Gangs whose keys stay in a leader's store after their end, for members that are late to notice it."""


class TorchDdpBackend:
    """Opens process groups, one after the other, in one process.

    Args:
        timeout_seconds: a member that keeps its partners waiting for longer breaks the gang.
    """

    name = "torch_ddp"

    def __init__(self, *, timeout_seconds: float = 120.0) -> None:
        self._timeout = timedelta(seconds=timeout_seconds)

    def open(self, gang: GangPlace) -> OpenGang:
        if gang.communicator is None:
            raise ValueError("a torch_ddp gang needs a communicator")
        server = _stores.serve(self._timeout) if gang.rank == 0 else None
        address = None if server is None else (socket.gethostname(), server.port)
        host, port = "", 0
        hook = sys.excepthook
        try:
            host, port = gang.communicator.bcast(address, root=0)
            backend = _backend_of(gang)
            store = server if server is not None else _stores.connect(host, port, self._timeout)
            dist.init_process_group(
                backend,
                store=PrefixStore(gang.key, store),
                rank=gang.rank,
                world_size=gang.size,
                timeout=self._timeout,
            )
        except (RuntimeError, ValueError) as error:  # errors of MPI included
            _destroy()
            if server is None:
                _stores.forget(host, port)
            raise GangBroken(f"the process group did not start: {_one_line(error)}") from error
        finally:
            sys.excepthook = hook  # each start puts another one around it, for ever
        if server is not None:
            _stores.tidy(gang.key)
        return TorchDdpGang(gang)


class TorchDdpGang(OpenGang):
    """One process group."""

    name = "torch_ddp"

    def __init__(self, gang: GangPlace) -> None:
        self.rank = gang.rank
        self.size = gang.size
        self._open = True

    def all_gather(self, values_K: torch.Tensor) -> torch.Tensor:
        gathered_RK = values_K.new_empty((self.size, *values_K.shape))
        self._guarded(lambda: dist.all_gather(list(gathered_RK.unbind(0)), values_K.detach()))
        return gathered_RK

    def all_reduce_sum_(self, values_K: torch.Tensor) -> None:
        self._guarded(lambda: dist.all_reduce(values_K.detach(), op=dist.ReduceOp.SUM))

    def broadcast_(self, values_K: torch.Tensor, *, root: int) -> None:
        if values_K.numel():
            self._guarded(lambda: dist.broadcast(values_K.detach(), src=root))

    def close(self) -> None:
        if self._open:
            self._open = False
            _destroy()

    def _guarded(self, operation: Callable[[], Any]) -> None:
        if not self._open:
            raise GangBroken("the gang is closed")
        try:
            operation()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.close()
            raise GangBroken(f"a partner of this gang failed or is gone: {_one_line(error)}") from error


class _Stores:
    """The key-value stores of this process: its own server, started once, and bounded connections to those of others.

    They are kept for the life of the process, as a new store for each gang costs hundreds of milliseconds.
    """

    def __init__(self) -> None:
        self._server: TCPStore | None = None
        self._clients: OrderedDict[tuple[str, int], TCPStore] = OrderedDict()
        self._lives: deque[str] = deque()

    def serve(self, timeout: timedelta) -> TCPStore:
        """This process's own server, on a port that the system chooses."""
        if self._server is None:
            self._server = TCPStore(
                "localhost", 0, is_master=True, wait_for_workers=False, timeout=timeout, use_libuv=True
            )
        self._server.set_timeout(timeout)
        return self._server

    def connect(self, host: str, port: int, timeout: timedelta) -> TCPStore:
        """A connection to the server of a leader."""
        client = self._clients.pop((host, port), None)
        if client is None:
            near = "localhost" if host == socket.gethostname() else host
            client = TCPStore(near, port, is_master=False, wait_for_workers=False, timeout=timeout)
        client.set_timeout(timeout)
        self._clients[host, port] = client
        while len(self._clients) > KEPT_CLIENTS:
            self._clients.popitem(last=False)
        return client

    def forget(self, host: str, port: int) -> None:
        """Drop a connection that did not work: the leader may be gone, and its port taken by another."""
        self._clients.pop((host, port), None)

    def tidy(self, key: str) -> None:
        """Note a gang that this process leads, and delete the keys of those long gone."""
        assert self._server is not None
        self._lives.append(key)
        while len(self._lives) > KEPT_LIVES:
            prefix = self._lives.popleft() + "/"
            for name in self._server.list_keys():
                if name.startswith(prefix):
                    self._server.delete_key(name)


_stores = _Stores()


def _backend_of(gang: GangPlace) -> str:
    """nccl where every member has a GPU of its own, else gloo, which also moves the tensors of shared GPUs."""
    if not torch.cuda.is_available():
        return "gloo"
    assert gang.communicator is not None
    device = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    devices = gang.communicator.allgather((socket.gethostname(), device))
    return "cpu:gloo,cuda:nccl" if len(set(devices)) == gang.size else "gloo"


def _destroy() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _one_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
