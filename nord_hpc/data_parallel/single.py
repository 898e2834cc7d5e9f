"""The backend of gangs of one: nothing to share, nothing to add."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nord_hpc.data_parallel import GangPlace, OpenGang

if TYPE_CHECKING:
    import torch


class SingleBackend:
    """Opens gangs of one rank."""

    name = "single"

    def open(self, gang: GangPlace) -> OpenGang:
        if gang.size != 1:
            raise ValueError(f"the backend single is for gangs of 1, not {gang.size}")
        return SingleGang()


class SingleGang(OpenGang):
    """A gang of one."""

    name = "single"
    rank = 0
    size = 1

    def all_gather(self, values_K: torch.Tensor) -> torch.Tensor:
        return values_K.unsqueeze(0)

    def all_reduce_sum_(self, values_K: torch.Tensor) -> None:
        pass

    def broadcast_(self, values_K: torch.Tensor, *, root: int) -> None:
        pass

    def close(self) -> None:
        pass
