"""The states that recurrent layers carry from one window of a sequence to the next; when they begin anew, loops say."""

from __future__ import annotations

from typing import Any

from torch import nn


class CarriedStates:
    """The states of a network's recurrent layers, for each of the shards that one member trains in turn.

    A layer is recurrent where it has `initial` and `final`, as `nord_hpc.builder.recurrent.RecurrentCell` has. States
    are carried without their history: back-propagation ends at the window. Costs nothing for other networks.

    Args:
        slots: shards of this member.
    """

    def __init__(self, network: nn.Module, *, slots: int = 1) -> None:
        self._layers: list[Any] = [
            module for module in network.modules() if hasattr(module, "initial") and hasattr(module, "final")
        ]
        self._saved: list[list[Any]] = [[None] * len(self._layers) for _ in range(slots)]

    def reset(self) -> None:
        """Let all begin anew: the next window of each shard is the first of its streams."""
        self._saved = [[None] * len(self._layers) for _ in self._saved]

    def enter(self, slot: int) -> None:
        """Put the states of shard `slot` into the network."""
        for layer, state in zip(self._layers, self._saved[slot], strict=True):
            layer.initial = state

    def leave(self, slot: int) -> None:
        """Take the states that a window ended with out of the network."""
        for index, layer in enumerate(self._layers):
            self._saved[slot][index] = layer.final
            layer.initial = layer.final = None
