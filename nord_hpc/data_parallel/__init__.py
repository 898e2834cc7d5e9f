"""What the data-parallel backends share: a member's place in its gang, and the choice of one. Each has a file."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from nord_hpc import registry
from nord_hpc.errors import BadInput

if TYPE_CHECKING:
    import torch
    from mpi4py import MPI


@dataclass(frozen=True, slots=True)
class GangPlace:
    """Where one member stands in its gang, for one life of the gang.

    Attributes:
        rank: of this member, 0 .. size - 1; 0 leads.
        size: members.
        key: names this life of the gang: equal on its members, different for every other gang and life.
        communicator: between the members, in the order of their ranks; None for a gang of one.
    """

    rank: int
    size: int
    key: str
    communicator: MPI.Intracomm | None = None


class OpenGang(AbstractContextManager["OpenGang"]):
    """A `DataParallel` between its opening and its closing. Leaving its context closes it, in every case."""

    name: str
    rank: int
    size: int

    @abstractmethod
    def all_gather(self, values_K: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def all_reduce_sum_(self, values_K: torch.Tensor) -> None: ...

    @abstractmethod
    def broadcast_(self, values_K: torch.Tensor, *, root: int) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Free the backend. Partners that wait for this member are released with `GangBroken`. May be repeated."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Backend(Protocol):
    """A way for the ranks of a gang to add and share tensors."""

    name: str

    def open(self, gang: GangPlace) -> OpenGang:
        """Connect the members; all of them call it.

        Raises:
            GangBroken: a partner failed or is gone.
        """


def available(name: str) -> str | None:
    """Why the built-in backend `name` cannot be used here; None if it can. Imports it, torch included."""
    module = {"horovod": "horovod", "torch_ddp": "torch"}.get(name)
    if module is None:
        return None
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    try:
        registry.resolve("backend", name, folder=Path())
    except (ImportError, OSError) as error:
        return f"{module} cannot be imported: {' '.join(str(error).split())}"
    return None


def choose(name: str, *, size: int, folder: Path = Path()) -> Backend:
    """The backend of a gang of `size` ranks: `single` for one, else the named one; `auto` is horovod, else torch_ddp.

    Args:
        folder: where plug-in files are looked for.

    Raises:
        BadInput: the backend does not exist or cannot be used here.
    """
    if size == 1:
        name = "single"
    elif name == "auto":
        name = "horovod" if available("horovod") is None else "torch_ddp"
    elif name == "single":
        raise BadInput(
            f"resources.backend: single is for gangs of 1, not {size}; set it to horovod or torch_ddp, or set "
            "resources.gang to 1"
        )
    reason = available(name)
    if reason is not None:
        raise BadInput(f"resources.backend: {name} cannot be used here: {reason}; set it to auto")
    backend: Backend = registry.resolve("backend", name, folder=folder)()
    return backend
