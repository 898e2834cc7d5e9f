"""Species: members of a population grouped by their distance; who breeds and who dies is left to a strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nord_hpc.trial import Json

Member = tuple[float, int, Json]
"""(score, trial number, genotype)."""

STEP = 1.1
"""Factor by which the threshold changes at a regrouping that finds too many or too few species."""
BISECTIONS = 12
"""Of the range of distances, for the first threshold."""


@dataclass(slots=True)
class Species:
    """Members that are alike.

    Attributes:
        number: from 0, in the order in which they came up.
        representative: the genotype that newcomers are compared with.
        best: the highest score that a member ever had.
        improved_at: the time of that, as the strategy counts it.
        members: in the order in which they joined.
    """

    number: int
    representative: Json
    best: float
    improved_at: int
    members: list[Member] = field(default_factory=list)

    def champion(self) -> Member:
        """The best member; of equal ones the one of the lowest number."""
        return max(self.members, key=lambda member: (member[0], -member[1]))


class Speciation:
    """Groups members: each joins the first species, oldest first, whose representative is within the threshold.

    Stanley and Miikkulainen, "Evolving Neural Networks through Augmenting Topologies", 2002, section 3.3. The threshold
    rises where there are more species than wanted, and falls where there are fewer.

    Args:
        distance: between two genotypes; 0 for equal ones.
        target: number of species that is wanted.
        threshold: to begin with; None finds one at the first regrouping. Until then there is one species.

    Attributes:
        species: those that have members, oldest first.
        threshold: largest distance to the representative within a species.
    """

    def __init__(self, distance: Callable[[Json, Json], float], *, target: int, threshold: float | None) -> None:
        self._distance = distance
        self._target = target
        self.threshold = threshold
        self.species: list[Species] = []
        self._n_species = 0

    @property
    def n_members(self) -> int:
        return sum(len(species.members) for species in self.species)

    def place(self, member: Member, *, now: int) -> Species:
        """Let a member join a species, if need be a new one."""
        score, _, genotype = member
        home = next((species for species in self.species if self._is_near(species, genotype)), None)
        if home is None:
            home = Species(self._n_species, genotype, score, now)
            self._n_species += 1
            self.species.append(home)
        home.members.append(member)
        if score > home.best:
            home.best, home.improved_at = score, now
        return home

    def remove(self, species: Species, member: Member) -> None:
        """Take a member out, and its species where it was the last one."""
        species.members.remove(member)
        if not species.members:
            self.species.remove(species)

    def regroup(self, members: Sequence[Member], *, now: int) -> None:
        """Group these members instead of those that are there, by the best of the latter, with a better threshold."""
        for species in self.species:
            species.representative = species.champion()[2]
        if self.threshold is None:
            self.threshold = self._first_threshold(members)
        elif self.species and len(self.species) != self._target:
            self.threshold *= STEP if len(self.species) > self._target else 1 / STEP
        for species in self.species:
            species.members = []
        for member in members:
            self.place(member, now=now)
        self.species = [species for species in self.species if species.members]

    def state_dict(self) -> Json:
        return {
            "threshold": self.threshold,
            "n_species": self._n_species,
            "species": [
                {
                    "number": species.number,
                    "representative": species.representative,
                    "best": species.best,
                    "improved_at": species.improved_at,
                    "members": [list(member) for member in species.members],
                }
                for species in self.species
            ],
        }

    def load_state_dict(self, state: Json) -> None:
        self.threshold, self._n_species = state["threshold"], state["n_species"]
        self.species = [
            Species(**{**saved, "members": [(score, number, genotype) for score, number, genotype in saved["members"]]})
            for saved in state["species"]
        ]

    def _is_near(self, species: Species, genotype: Json) -> bool:
        return self.threshold is None or self._distance(species.representative, genotype) <= self.threshold

    def _first_threshold(self, members: Sequence[Member]) -> float:
        """One that makes as many species of these as are wanted, or nearly so."""
        genotypes = [genotype for _, _, genotype in members]
        low, high = 0.0, max((self._distance(genotypes[0], other) for other in genotypes[1:]), default=0.0)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            if self._count(genotypes, middle) > self._target:
                low = middle
            else:
                high = middle
        return high

    def _count(self, genotypes: Sequence[Json], threshold: float) -> int:
        """Species of these at a threshold; no more than one above what is wanted are counted."""
        leaders: list[Json] = []
        for genotype in genotypes:
            if all(self._distance(leader, genotype) > threshold for leader in leaders):
                leaders.append(genotype)
                if len(leaders) > self._target:
                    break
        return len(leaders)
