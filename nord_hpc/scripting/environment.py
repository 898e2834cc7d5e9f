"""Environment: the ranks of a script as a context. The first one drives, the others evaluate with it what it asks for.

The master's sends stand beside the workers' receives: Work / Prepared, Go / Finished, Stop.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nord_hpc.cluster.launch import check_world, under_launcher
from nord_hpc.cluster.polling import wait_until
from nord_hpc.data_parallel import GangPlace, choose
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import GangBroken
from nord_hpc.interfaces import DataParallel
from nord_hpc.scripting.evaluation import Datasets, Evaluation, Request, Say, evaluate
from nord_hpc.scripting.evaluators import DistributedEvaluator, say
from nord_hpc.training.device import local_rank

if TYPE_CHECKING:
    from nord_hpc.cluster.transport_mpi import Mailbox, World

log = logging.getLogger(__name__)

MASTER = 0
FLUSH_SECONDS = 5.0

_entered: list[Environment] = []


def current() -> Environment | None:
    """The environment that was entered last and not left; None outside of all."""
    return _entered[-1] if _entered else None


@dataclass(frozen=True, slots=True)
class Work:
    """Master to every worker: make ready for this evaluation. The content is cloudpickled, and opened by the worker."""

    number: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Prepared:
    """Worker to master: ready, or why not."""

    number: int
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Go:
    """Master to every worker: begin, all together; or drop this evaluation, as some rank is not ready."""

    number: int
    begin: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """Worker to master: this evaluation is over here."""

    number: int
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Stop:
    """Master to every worker: leave the environment."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception on its way to the master.

    Attributes:
        error: cloudpickled; None where it cannot be.
        text: the traceback.
        broken: whether it says only that a partner is gone.
    """

    error: bytes | None
    text: str
    broken: bool
    rank: int
    host: str


class RemoteTraceback(Exception):
    """Where an exception of another rank came from; stands as the cause of that exception."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class RankFailed(Exception):
    """A rank failed with an exception that cannot travel; its text is all there is."""


class Environment(contextlib.AbstractContextManager["Environment"]):
    """All ranks that mpirun has started, or this process alone, as one machine for data-parallel evaluations.

    Every rank enters. On the master, rank 0, the body runs; all evaluations inside are done by all ranks together. The
    other ranks serve until the master leaves, and then end: entering raises SystemExit there. So the body, and what
    follows it, is the master's alone, and what the ranks must share stands before it.

    An exception of any rank during an evaluation is raised on the master, with its rank, host and traceback; the
    environment can be used on. An exception that leaves the body ends all ranks.

    Args:
        optimizer_class, optimizer_params: of `descriptor_evaluate` and `net_evaluate`; Adam with torch's defaults.
        verbose: see `nord_hpc.scripting.evaluators.Evaluator`.
        backend: between the ranks: "horovod", "torch_ddp", or "auto".
        timeout_seconds: how long ranks may keep the master waiting after it is done itself; then all ranks end.
        options: of the evaluator.

    Attributes:
        world_rank, local_rank: of this process, among all and on its host.
        world_size: ranks.
    """

    def __init__(
        self,
        optimizer_class: Callable[..., torch.optim.Optimizer] | None = None,
        optimizer_params: Mapping[str, Any] | None = None,
        *,
        verbose: bool = False,
        backend: str = "auto",
        timeout_seconds: float = 120.0,
        **options: Any,
    ) -> None:
        optimizer = torch.optim.Adam if optimizer_class is None else optimizer_class
        self._evaluator = DistributedEvaluator(optimizer, optimizer_params or {}, verbose, **options)
        self._backend = backend
        self._timeout_seconds = timeout_seconds
        self._world: World | None = None
        self._mailbox: Mailbox | None = None
        self._inbox: deque[tuple[int, Any]] = deque()
        self._datasets = Datasets()
        self._number = 0
        self.world_rank, self.world_size = 0, 1
        self.local_rank = 0

    # What users call

    def __enter__(self) -> Environment:
        if under_launcher():
            self._join_world()
        if self.master():
            _entered.append(self)
            return self
        try:
            self._serve()
        except Exception:
            self._abort("a worker failed")
            raise
        raise SystemExit(0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self in _entered:
            _entered.remove(self)
        self.shutdown()

    def shutdown(self) -> None:
        """Let the workers leave. May be repeated."""
        if self._mailbox is not None and self.master():
            self._send_all(Stop())
            self._mailbox.flush(FLUSH_SECONDS)
            self._mailbox = None
            self.world_size = 1

    def master(self) -> bool:
        """Whether this is the rank that drives."""
        return self.world_rank == MASTER

    def print(self, text: object) -> None:
        """Print once, whatever the number of ranks."""
        if self.master():
            say(str(text))

    def log(self, text: object) -> None:
        """A line in the log of the master."""
        if self.master():
            log.info("%s", text)

    def descriptor_evaluate(
        self,
        descriptor: NeuralDescriptor,
        epochs: int = 5,
        data_percentage: float = 1.0,
        untrained: bool = False,
        dataset: str = "cifar10",
        *,
        seed: int | None = None,
    ) -> Evaluation:
        """See `nord_hpc.scripting.evaluators.Evaluator.descriptor_evaluate`."""
        return self._evaluator.descriptor_evaluate(descriptor, epochs, data_percentage, untrained, dataset, seed=seed)

    def net_evaluate(
        self,
        net: nn.Module,
        epochs: int = 5,
        data_percentage: float = 1.0,
        untrained: bool = False,
        dataset: str = "cifar10",
        return_net: bool = False,
        *,
        seed: int | None = None,
    ) -> Any:
        """See `nord_hpc.scripting.evaluators.Evaluator.net_evaluate`."""
        return self._evaluator.net_evaluate(
            net, epochs, data_percentage, untrained, dataset, return_net=return_net, seed=seed
        )

    # The master's side

    def evaluate(
        self, request: Request, network: NeuralDescriptor | nn.Module, *, say: Say | None = None
    ) -> Evaluation:
        """Evaluate on all ranks together. Raises what any rank raises; the cause before those that it broke."""
        self._number += 1
        if self._mailbox is None:
            return self._run(request, network, key=id(request.record), say=say)
        import cloudpickle  # type: ignore[import-untyped]

        if isinstance(network, nn.Module):
            network.cpu()
        content = cloudpickle.dumps((request, network))
        key = hashlib.sha256(cloudpickle.dumps(request.record)).hexdigest()
        self._send_all(Work(self._number, cloudpickle.dumps((content, key))))
        failures = self._collect(Prepared)
        self._send_all(Go(self._number, begin=not failures))
        if failures:
            _raise_first(failures)
        result: Evaluation | None = None
        try:
            result = self._run(request, network, key=key, say=say)
        except Exception as error:
            failures = self._collect(Finished)
            if isinstance(error, GangBroken):
                _raise_first(failures)  # the cause, where a rank knows it
            raise
        failures = self._collect(Finished)
        _raise_first(failures)
        return result

    def _send_all(self, message: Any) -> None:
        assert self._mailbox is not None
        for rank in range(1, self.world_size):
            self._mailbox.send(rank, message)

    def _collect(self, kind: type[Prepared] | type[Finished]) -> list[Failure]:
        """The failures of all workers, once each has answered."""
        waiting = set(range(1, self.world_size))
        failures = []
        ends = time.monotonic() + self._timeout_seconds
        while waiting:
            rank, message = self._next(ends)
            if message is None:
                ranks = ", ".join(map(str, sorted(waiting)))
                self._abort(f"rank {ranks} did not answer within {self._timeout_seconds:g} s")
            if isinstance(message, kind) and message.number == self._number:
                waiting.discard(rank)
                if message.failure is not None:
                    failures.append(message.failure)
        return sorted(failures, key=lambda failure: (failure.broken, failure.rank))

    # The workers' side, its mirror

    def _serve(self) -> None:
        """Answer the master until it says stop."""
        assert self._mailbox is not None
        while True:
            _, message = self._next()
            if isinstance(message, Stop):
                return
            if not isinstance(message, Work):
                continue
            work, failure = self._prepare(message)
            self._mailbox.send(MASTER, Prepared(message.number, failure))
            _, go = self._next()
            if isinstance(go, Stop):
                return
            if isinstance(go, Go) and go.begin and work is not None:
                self._number = go.number
                self._mailbox.send(MASTER, Finished(go.number, self._work(*work)))
                self._mailbox.flush(FLUSH_SECONDS)

    def _prepare(self, work: Work) -> tuple[tuple[Request, NeuralDescriptor | nn.Module, str] | None, Failure | None]:
        import cloudpickle

        try:
            content, key = cloudpickle.loads(work.content)
            request, network = cloudpickle.loads(content)
        except Exception as error:
            return None, self._failure(error)
        return (request, network, key), None

    def _work(self, request: Request, network: NeuralDescriptor | nn.Module, key: str) -> Failure | None:
        try:
            self._run(request, network, key=key, say=None)
        except Exception as error:
            return self._failure(error)
        return None

    # Both sides

    def _run(
        self, request: Request, network: NeuralDescriptor | nn.Module, *, key: object, say: Say | None
    ) -> Evaluation:
        # Everything that can fail happens within the connection: leaving it releases the partners.
        with self._connect() as data_parallel:
            return evaluate(request, network, datasets=self._datasets, key=key, data_parallel=data_parallel, say=say)[0]

    @contextlib.contextmanager
    def _connect(self) -> Iterator[DataParallel]:
        """The backend between all ranks over a fresh communicator, which is left behind after a failure."""
        communicator = None
        if self._world is not None and self.world_size > 1:
            ranks = tuple(range(self.world_size))
            communicator = self._world.gang_communicator(ranks, tag=self._number % 16384, kept=None)
        place = GangPlace(self.world_rank, self.world_size, f"script-{self._number}", communicator)
        with choose(self._backend, size=self.world_size).open(place) as data_parallel:
            yield data_parallel
        if communicator is not None:
            communicator.Free()

    def _join_world(self) -> None:
        from nord_hpc.cluster.transport_mpi import World

        self._world = World()
        check_world(self._world.size)
        self.world_rank, self.world_size = self._world.rank, self._world.size
        self.local_rank = local_rank(os.environ)
        if self.world_size > 1:
            self._mailbox = self._world.mailbox(master=self._world.rank == 0)

    def _next(self, ends: float | None = None) -> tuple[int, Any]:
        """The next message and its sender; (-1, None) after the time `ends`."""
        assert self._mailbox is not None
        while not self._inbox:
            if ends is not None and time.monotonic() > ends:
                return -1, None
            if wait_until(self._mailbox.arrived, 1.0):
                self._inbox.extend(self._mailbox.receive_all())
        return self._inbox.popleft()

    def _failure(self, error: Exception) -> Failure:
        import cloudpickle

        try:
            packed: bytes | None = cloudpickle.dumps(error)
            cloudpickle.loads(packed)
        except Exception:
            packed = None
        text = "".join(traceback.format_exception(error))
        return Failure(packed, text, isinstance(error, GangBroken), self.world_rank, socket.gethostname())

    def _abort(self, reason: str) -> None:
        """End all ranks at once."""
        log.error("rank %d ends all ranks: %s\n%s", self.world_rank, reason, traceback.format_exc())
        if self._world is not None and self.world_size > 1:
            self._world.abort(1)
        raise RankFailed(reason)


def _raise_first(failures: list[Failure]) -> None:
    """Raise the first failure as its rank raised it."""
    if not failures:
        return
    first = failures[0]
    cause = RemoteTraceback(f"on rank {first.rank} ({first.host}):\n{first.text}")
    if first.error is None:
        raise RankFailed(first.text.strip().splitlines()[-1]) from cause
    import cloudpickle

    error: Exception = cloudpickle.loads(first.error)
    raise error from cause
