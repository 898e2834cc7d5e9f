"""Toy spaces with what local search and policies need beside the operators: neighbours, decisions, skips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from conformance.strategy_suite import SinglePoint, ToySpace

LETTERS = 4


class Words(ToySpace):
    """The toy words, which differ from their neighbours in one letter, and are one decision a letter."""

    def neighbours(self, genotype: Any) -> Iterator[Any]:
        for at, letter in enumerate(genotype):
            for other in range(LETTERS):
                if other != letter:
                    yield [*genotype[:at], other, *genotype[at + 1 :]]

    def decisions(self) -> tuple[int, ...]:
        return (LETTERS,) * self.length

    def from_decisions(self, choices: Sequence[int]) -> Any:
        return list(choices)


class SingleWord(SinglePoint):
    """One word, without neighbours and choices."""

    def neighbours(self, genotype: Any) -> Iterator[Any]:
        yield from ()

    def decisions(self) -> tuple[int, ...]:
        return (1,) * self.length

    def from_decisions(self, choices: Sequence[int]) -> Any:
        return [0] * self.length


class Chains(ToySpace):
    """Four layers of two decisions, each of which may read any earlier one: [kinds, widths, skips by (layer, earlier)].

    Good are layers of kind 1 and width 2 that read the layer before the last, and no other.
    """

    n_layers = 4

    def sample(self, rng: np.random.Generator) -> Any:
        return self.from_decisions([int(n * u) for n, u in zip(self.decisions(), rng.random(14), strict=True)])

    def contains(self, genotype: Any) -> bool:
        return [len(part) for part in genotype] == [4, 4, 6]

    def places(self) -> list[tuple[int, int | None]]:
        """For each decision its layer and, where it is a skip, the earlier layer."""
        return [
            place
            for layer in range(self.n_layers)
            for place in ((layer, None), (layer, None), *((layer, earlier) for earlier in range(layer)))
        ]

    def skips(self) -> tuple[int | None, ...]:
        last = {layer: at for at, (layer, _) in enumerate(self.places())}
        return tuple(None if earlier is None else last[earlier] for _, earlier in self.places())

    def decisions(self) -> tuple[int, ...]:
        counts: list[int] = []
        for layer in range(self.n_layers):
            counts += [2, 3, *[2] * layer]
        return tuple(counts)

    def from_decisions(self, choices: Sequence[int]) -> Any:
        ordinary = [c for c, (_, earlier) in zip(choices, self.places(), strict=True) if earlier is None]
        skips = [c for c, (_, earlier) in zip(choices, self.places(), strict=True) if earlier is not None]
        return [ordinary[::2], ordinary[1::2], skips]

    def goodness(self, genotype: Any) -> float:
        kinds, widths, skips = genotype
        wanted = [int(earlier == layer - 2) for layer, earlier in self.places() if earlier is not None]
        hits = [k == 1 for k in kinds] + [w == 2 for w in widths] + [s == w for s, w in zip(skips, wanted, strict=True)]
        return sum(hits) / len(hits)


def with_decisions(space: Any) -> Any:
    """The toy spaces of the suite with neighbours and decisions; others as they are."""
    if type(space) is ToySpace:
        return Words(space.length)
    return SingleWord(space.length) if type(space) is SinglePoint else space
