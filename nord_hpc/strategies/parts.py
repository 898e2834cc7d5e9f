"""Parts that evolve: each has the mean score of the networks it was in. Who breeds is left to a strategy."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nord_hpc.trial import Json

FITNESS_FLOOR = 0.2
"""Fitness of the worst part; that of the best is 1, and others lie between by their means."""


@dataclass(slots=True)
class Part:
    """A blueprint or a module.

    Attributes:
        key: of parts of its kind, in the order in which they came up.
        genotype: of the part.
        trial: number of the first network that it was in.
        total: sum of the scores of the networks that it was in.
        count: of these networks, 1 or more.
    """

    key: int
    genotype: Json
    trial: int
    total: float
    count: int

    @property
    def mean(self) -> float:
        return self.total / self.count

    def to_json(self) -> Json:
        return [self.key, self.genotype, self.trial, self.total, self.count]


class Parts:
    """The living parts of one kind, in groups; a part alone is worst where its mean is the lowest.

    Args:
        capacity: of all groups together.
        n_groups: at least 1, and no more than the capacity.
    """

    def __init__(self, *, capacity: int, n_groups: int) -> None:
        self._capacity = capacity
        self._next_key = 0
        self.groups: list[list[Part]] = [[] for _ in range(n_groups)]

    def credit(self, key: int | None, genotype: Json, *, group: int, trial: int, score: float) -> None:
        """A network with this part has a score.

        Args:
            key: None for a new part; it is taken for the living one that it is equal to. What has died is forgotten.
        """
        for part in (part for group_ in self.groups for part in group_):
            if part.key == key or (key is None and part.genotype == genotype):
                part.total += score
                part.count += 1
                return
        if key is None:
            self.groups[group].append(Part(self._next_key, genotype, trial, score, 1))
            self._next_key += 1
            if sum(map(len, self.groups)) > self._capacity:
                self._remove_worst()

    def regroup(self, distance: Callable[[Json, Json], float]) -> None:
        """Each part joins the group whose best part is nearest; the best ones stay, and equally near ones are taken by
        the first group.
        """
        best = {index: max(group, key=_mean) for index, group in enumerate(self.groups) if group}
        parts = sorted((part for group in self.groups for part in group), key=operator.attrgetter("key"))
        leading = {part.key: index for index, part in best.items()}
        self.groups = [[] for _ in self.groups]
        for part in parts:
            home = leading.get(part.key)
            if home is None:
                home = min(best, key=lambda index: distance(best[index].genotype, part.genotype))
            self.groups[home].append(part)

    def state_dict(self) -> Json:
        return {"next_key": self._next_key, "groups": [[part.to_json() for part in group] for group in self.groups]}

    def load_state_dict(self, state: Json) -> None:
        self._next_key = state["next_key"]
        self.groups = [[Part(*saved) for saved in group] for group in state["groups"]]

    def _remove_worst(self) -> None:
        """The part of least fitness after the parts of a group have shared theirs; the last of a group stays."""
        means = [[part.mean for part in group] for group in self.groups]
        worst, best = min(_flat(means)), max(_flat(means))
        # Halves, as the difference of two finite numbers need not be finite.
        width = best / 2 - worst / 2
        candidates = []
        for index, values in enumerate(means):
            if len(values) > 1 or len(self.groups) == 1:
                least = min(values)
                height = (least / 2 - worst / 2) / width if width > 0 else 0.0
                shared = (FITNESS_FLOOR + (1 - FITNESS_FLOOR) * height) / len(values)
                place = values.index(least)
                candidates.append((shared, self.groups[index][place].key, index, place))
        _, _, index, place = min(candidates)
        del self.groups[index][place]


def _flat(values: Iterable[Iterable[float]]) -> Iterable[float]:
    return (value for some in values for value in some)


_mean = operator.attrgetter("mean")
