"""How the gradients of a gang's members become the gradient of the whole batch."""

from __future__ import annotations

from typing import Protocol

import torch

from nord_hpc.interfaces import DataParallel


class Reduction(Protocol):
    """Adds up the gradients of one step into the flat gradient."""

    def after_shard(self, slot: int) -> None:
        """The flat gradient now holds that of this member's shard `slot`."""

    def finish(self) -> None:
        """Leave the sum over all shards of the gang in the flat gradient."""


class ExactReduction:
    """Adds the shards' gradients in the order of the shards, whoever computed them: equal bits on any number of ranks.

    Costs the memory and traffic of a gradient per shard.

    Args:
        gradient_P: the flat gradient; zero before the first shard of a step.
        slots: shards of this member.
    """

    def __init__(self, gradient_P: torch.Tensor, *, slots: int, data_parallel: DataParallel) -> None:
        self._gradient_P = gradient_P
        self._data_parallel = data_parallel
        self._slots = slots
        self._kept_LP = gradient_P.new_empty((slots, gradient_P.numel() if slots > 1 else 0))

    def after_shard(self, slot: int) -> None:
        # Alone, the backward passes have already added one shard after the other to the flat gradient.
        if self._data_parallel.size > 1 and self._slots > 1:
            self._kept_LP[slot].copy_(self._gradient_P)
            self._gradient_P.zero_()

    def finish(self) -> None:
        if self._data_parallel.size == 1:
            return
        mine_K = self._kept_LP.view(-1) if self._slots > 1 else self._gradient_P
        shards_SP = self._data_parallel.all_gather(mine_K).view(-1, self._gradient_P.numel())
        self._gradient_P.copy_(shards_SP[0])
        for gradient_P in shards_SP[1:]:
            self._gradient_P.add_(gradient_P)


class FastReduction:
    """Leaves the sum to the backend: repeatable for one gang size, backend and layout of hosts."""

    def __init__(self, gradient_P: torch.Tensor, *, data_parallel: DataParallel) -> None:
        self._gradient_P = gradient_P
        self._data_parallel = data_parallel

    def after_shard(self, slot: int) -> None:
        pass

    def finish(self) -> None:
        self._data_parallel.all_reduce_sum_(self._gradient_P)
