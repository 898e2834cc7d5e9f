"""A space of networks together with hyperparameters of their training: each point is a pair of both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.job import Named, Settings
from nord_hpc.spaces.hyperparameters import Hyperparameters, ParameterSettings, make_space, resolved
from nord_hpc.trial import Json

ARCHITECTURE, HYPERPARAMETERS = "architecture", "hyperparameters"
KEYS = frozenset({ARCHITECTURE, HYPERPARAMETERS})

CAPABILITIES = {
    "neighbours": ("neighbours", "neighbours"),
    "encode": ("encode", "encode"),
    "encode_paths": ("encode_paths", "encode"),
    "size": ("size", "size"),
    "decisions": ("decisions", "decisions"),
    "from_decisions": ("from_decisions", "from_decisions"),
    "from_descriptor": ("from_descriptor", "usual"),
}
"""What a joint space can do beyond the least, and what each of its parts must then be able to do."""


class Joint:
    """Pairs {"architecture": a point of the one space, "hyperparameters": a point of the other}.

    It has those capabilities that follow from what both parts have, and no others.

    Attributes:
        architecture, hyperparameters: the two spaces, for strategies that treat them differently.
    """

    class Options(Settings):
        """The two parts.

        Attributes:
            architecture: name and options of a space of networks, as in a job; a file.py:Class is looked for from the
                working directory.
            hyperparameters: as the options of the space `hyperparameters`, without a network.
            hyperparameter_mutations: share of the mutations that change a hyperparameter, not the network.
        """

        architecture: Named
        hyperparameters: ParameterSettings
        hyperparameter_mutations: float = Field(0.5, ge=0, le=1)

        @field_validator("architecture")
        @classmethod
        def _with_defaults(cls, architecture: Named) -> Named:
            return resolved(architecture)

    def __init__(self, options: Options) -> None:
        """
        Raises:
            ValueError: the space of networks refuses its options.
        """
        self.architecture = make_space(options.architecture)
        self.hyperparameters = Hyperparameters(Hyperparameters.Options(**dict(options.hyperparameters)))
        self._share = options.hyperparameter_mutations

    def __getattr__(self, name: str) -> Any:
        """A capability, where the parts have what it needs: so that `hasattr` tells the truth."""
        needed = CAPABILITIES.get(name)
        if needed is not None and all(map(hasattr, (self.architecture, self.hyperparameters), needed)):
            return getattr(self, f"_{name}")
        raise AttributeError(f"{type(self).__name__} has no {name!r} here")

    def sample(self, rng: np.random.Generator) -> Json:
        return _pair(self.architecture.sample(rng), self.hyperparameters.sample(rng))

    def mutate(self, genotype: Json, rng: np.random.Generator) -> Json:
        """A mutation of one of both parts; of the other where that part has no other point."""
        keys = [ARCHITECTURE, HYPERPARAMETERS] if rng.random() >= self._share else [HYPERPARAMETERS, ARCHITECTURE]
        child = _copied(genotype)
        for key in keys:
            child[key] = self._part(key).mutate(genotype[key], rng)
            if child[key] != genotype[key]:
                break
        return child

    def crossover(self, first: Json, second: Json, rng: np.random.Generator) -> Json:
        """A crossover of each part."""
        return _pair(
            self.architecture.crossover(first[ARCHITECTURE], second[ARCHITECTURE], rng),
            self.hyperparameters.crossover(first[HYPERPARAMETERS], second[HYPERPARAMETERS], rng),
        )

    def contains(self, genotype: Json) -> bool:
        """Whether `genotype` is a point of this space. Never raises."""
        return (
            isinstance(genotype, dict)
            and genotype.keys() == KEYS
            and self.architecture.contains(genotype[ARCHITECTURE])
            and self.hyperparameters.contains(genotype[HYPERPARAMETERS])
        )

    def to_descriptor(self, genotype: Json) -> NeuralDescriptor:
        return self.architecture.to_descriptor(genotype[ARCHITECTURE])

    def settings(self, genotype: Json) -> dict[str, Json]:
        """The job fields that this point sets, by dotted name."""
        return self.hyperparameters.settings(genotype[HYPERPARAMETERS])

    # What follows is there under its name without the underscore where both parts allow it; see `__getattr__`.

    def _neighbours(self, genotype: Json) -> Iterator[Json]:
        """Every point with one of both parts at one step."""
        for architecture in self._part(ARCHITECTURE).neighbours(genotype[ARCHITECTURE]):
            yield {**_copied(genotype), ARCHITECTURE: architecture}
        for hyperparameters in self._part(HYPERPARAMETERS).neighbours(genotype[HYPERPARAMETERS]):
            yield {**_copied(genotype), HYPERPARAMETERS: hyperparameters}

    def _encode(self, genotype: Json) -> list[float]:
        code: list[float] = self._part(ARCHITECTURE).encode(genotype[ARCHITECTURE])
        return [*code, *self.hyperparameters.encode(genotype[HYPERPARAMETERS])]

    def _encode_paths(self, genotype: Json) -> list[float]:
        code: list[float] = self._part(ARCHITECTURE).encode_paths(genotype[ARCHITECTURE])
        return [*code, *self.hyperparameters.encode(genotype[HYPERPARAMETERS])]

    def _size(self) -> int | None:
        sizes = [self._part(key).size() for key in (ARCHITECTURE, HYPERPARAMETERS)]
        return None if None in sizes else math.prod(sizes)

    def _decisions(self) -> tuple[int, ...]:
        return (*self._part(ARCHITECTURE).decisions(), *self._part(HYPERPARAMETERS).decisions())

    def _from_decisions(self, choices: Sequence[int]) -> Json:
        architecture, hyperparameters = self._part(ARCHITECTURE), self._part(HYPERPARAMETERS)
        n_first = len(architecture.decisions())
        return _pair(architecture.from_decisions(choices[:n_first]), hyperparameters.from_decisions(choices[n_first:]))

    def _from_descriptor(self, descriptor: NeuralDescriptor) -> Json:
        """The point of that network with the usual hyperparameters."""
        return _pair(self._part(ARCHITECTURE).from_descriptor(descriptor), self.hyperparameters.usual())

    def _part(self, key: str) -> Any:
        """A part with more capabilities than a space must have."""
        return self.architecture if key == ARCHITECTURE else self.hyperparameters


def _pair(architecture: Json, hyperparameters: Json) -> Json:
    return {ARCHITECTURE: architecture, HYPERPARAMETERS: hyperparameters}


def _copied(value: Json) -> Json:
    """A copy that shares nothing."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
