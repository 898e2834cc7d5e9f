"""Whose turn it is in an evolving population: samples first, then children, one at a time or by whole generations."""

from __future__ import annotations

from nord_hpc.trial import Json


class Turns:
    """Counts asks and tells of a strategy that evolves a population; who lives and breeds is left to the strategy.

    The first `population` asks are samples. By generations, the next ones wait until all results of a generation are
    told, and `over` then says that the next generation is to be selected. In the steady state no ask waits; samples
    replace failures until the population is full.

    Attributes:
        began: whether anything has been asked. Results before that stand for samples.
        left: asks that are sure to be samples, or children of this generation.
        pending: numbers of the trials asked for and not told.
    """

    def __init__(self, *, population: int, generational: bool) -> None:
        self._population = population
        self._generational = generational
        self.began = False
        self.left = population
        self.pending: set[int] = set()

    def begin(self, number: int) -> None:
        """An ask begins; an earlier proposal of the same number was dropped, and another takes its place."""
        self.began = True
        if number in self.pending:
            self.pending.discard(number)
            self.left += self._generational

    @property
    def over(self) -> bool:
        """Whether all of this generation have been asked for; never in the steady state."""
        return self._generational and self.left == 0

    def next_generation(self, n_children: int) -> None:
        """So many children are to be asked for from now on."""
        self.left = n_children

    def take(self, number: int, *, n_parents: int) -> bool:
        """The ask is answered by a proposal; whether that has to be a sample, as too few live that could breed."""
        n_alive = n_parents + len(self.pending)
        refilling = not self._generational and (self.left > 0 or n_alive < self._population)
        self.left = max(0, self.left - 1)
        self.pending.add(number)
        # While nothing has completed there is no parent, however many are pending.
        return refilling or n_parents == 0

    def tell(self, number: int, *, completed: bool) -> None:
        """A result is there."""
        self.pending.discard(number)
        if completed and not self.began:
            self.left = max(0, self.left - 1)

    def state_dict(self) -> Json:
        return {"began": self.began, "left": self.left, "pending": sorted(self.pending)}

    def load_state_dict(self, state: Json) -> None:
        self.began, self.left, self.pending = state["began"], state["left"], set(state["pending"])
