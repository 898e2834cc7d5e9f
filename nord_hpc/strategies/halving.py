"""Asynchronous successive halving: what asha and mo_asha share. How a rung is ranked is left to its ranking.

Many candidates get little training, the best of them more, and so on; nobody waits until a rung is full.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nord_hpc.interfaces import Done, SearchSpace, Strategy, Wait
from nord_hpc.strategies.inner import inner_strategy
from nord_hpc.trial import Fidelity, FinishedTrial, Json, Proposal

MOST_RUNGS = 4


class HalvingOptions(BaseModel):
    """Who proposes, and how many of a rung go on.

    Attributes:
        strategy: the inner one, by its name and options: {name: regularized_evolution, population: 20}.
        eta: one of so many goes on to the next rung.
        rungs: epochs of each, ascending; the last one is the job's training.epochs. None makes up to four, each but the
            last with 1 / eta of the epochs of the next.
        learns_from: what the inner strategy is told: the results of the `lowest` rung, which compare with each other,
            or `all` results, where it is told one of a higher rung as another trial of the same candidate.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: dict[str, Any] = Field(default_factory=lambda: {"name": "random_search"})
    eta: int = Field(3, ge=2)
    rungs: tuple[int, ...] | None = Field(None, min_length=1)
    learns_from: Literal["lowest", "all"] = "all"

    @model_validator(mode="after")
    def _rungs_rise(self) -> HalvingOptions:
        inner_strategy(self.strategy)
        if self.rungs is not None:
            rises = all(low < high for low, high in zip(self.rungs, self.rungs[1:], strict=False))
            if not rises or self.rungs[0] < 1:
                raise ValueError(f"rungs {list(self.rungs)} do not rise from 1 or more; set them in ascending order")
        return self


class Ranking(Protocol):
    """The finished trials of one rung in their order, and which of them wait for going on to the next."""

    def add(self, finished: FinishedTrial) -> bool:
        """Let a trial in; whether it waits. One that has not completed counts, ranks last, and does not wait."""

    def candidate(self, n: int) -> int | None:
        """The number of the best one that waits, if it is among the `n` best."""

    def set_waiting(self, number: int, waits: bool) -> None:
        """A trial goes on, or does not after all."""

    def __len__(self) -> int: ...

    def state_dict(self) -> Json: ...

    def load_state_dict(self, state: Json) -> None: ...


class _Rung:
    """One level of training, and who has had it.

    Attributes:
        epochs: in all, those of the lower rungs included.
        waiting: those not yet gone on, by number: genotype, and whether its trained state is there.
    """

    def __init__(self, epochs: int, ranking: Ranking) -> None:
        self.epochs = epochs
        self.ranking = ranking
        self.waiting: dict[int, tuple[Json, bool]] = {}

    def state_dict(self) -> Json:
        waiting = [[number, *candidate] for number, candidate in self.waiting.items()]
        return {"ranking": self.ranking.state_dict(), "waiting": waiting}

    def load_state_dict(self, state: Json) -> None:
        self.ranking.load_state_dict(state["ranking"])
        self.waiting = {number: (genotype, continues) for number, genotype, continues in state["waiting"]}


class Halving:
    """Proposes by the inner strategy in the lowest rung and promotes the best of each.

    Args:
        name: of the strategy, for messages.
        ranking: makes the ranking of a rung.

    Raises:
        ValueError: rungs that do not end at the job's epochs, or an inner strategy that continues trials itself.
    """

    def __init__(
        self,
        options: HalvingOptions,
        *,
        name: str,
        ranking: Callable[[], Ranking],
        space: SearchSpace,
        seed: int,
        full_fidelity: Fidelity,
    ) -> None:
        cls, inner_options = inner_strategy(options.strategy)
        self._inner: Strategy = cls(inner_options, space=space, seed=seed, full_fidelity=full_fidelity)
        if getattr(self._inner, "continues_trials", False):
            raise ValueError(
                f"strategy {name} cannot hold {options.strategy['name']}, whose trials continue each other too; set "
                f"strategy.strategy.name to another one"
            )
        self._eta = options.eta
        self._tells_all = options.learns_from == "all"
        self._full = full_fidelity
        epochs = _rungs(options, full_fidelity.epochs, name=name)
        self._rungs = [_Rung(lower, ranking()) for lower in epochs[:-1]]  # without the full training behind them
        # By trial number: the inner strategy's (None), or (number of the trial that goes on, rung it comes from, and
        # what that rung knows of it).
        self._pending: dict[int, tuple[int, int, Json, bool] | None] = {}

    def ask(self, number: int) -> Proposal | Wait | Done:
        dropped = number in self._pending
        promoted = self._pending.pop(number, None)
        if promoted is not None:
            lower, level, genotype, continues = promoted
            self._rungs[level].waiting[lower] = (genotype, continues)
            self._rungs[level].ranking.set_waiting(lower, True)
        # The inner strategy is asked again where its own proposal was dropped: only so it learns of that.
        proposal = None if dropped and promoted is None else self._promote(number)
        if proposal is not None:
            return proposal
        answer = self._inner.ask(number)
        if isinstance(answer, Proposal):
            self._pending[number] = None
            if answer.fidelity is None:
                return Proposal(answer.genotype, answer.parents, self._fidelity(0))
        elif isinstance(answer, Done) and self._pending:
            return Wait()  # their results may lead to promotions
        return answer

    def tell(self, finished: FinishedTrial) -> None:
        trial = finished.trial
        is_promoted = self._pending.pop(trial.number, None) is not None
        if self._tells_all or not is_promoted:
            self._inner.tell(finished)
        if trial.fidelity.fraction != self._full.fraction:
            return
        for rung in self._rungs:
            if rung.epochs == trial.fidelity.epochs and rung.ranking.add(finished):
                rung.waiting[trial.number] = (trial.genotype, trial.runs)

    def independent_asks(self) -> int:
        # Any result may lead to a promotion.
        return 0

    def state_dict(self) -> Json:
        return {
            "inner": self._inner.state_dict(),
            "rungs": [rung.state_dict() for rung in self._rungs],
            "pending": [[number, promoted and list(promoted)] for number, promoted in sorted(self._pending.items())],
        }

    def load_state_dict(self, state: Json) -> None:
        self._inner.load_state_dict(state["inner"])
        for rung, saved in zip(self._rungs, state["rungs"], strict=True):
            rung.load_state_dict(saved)
        self._pending = {number: promoted and tuple(promoted) for number, promoted in state["pending"]}

    def _promote(self, number: int) -> Proposal | None:
        """The best candidate that may go on, of the highest rung that has one."""
        for level in reversed(range(len(self._rungs))):
            rung = self._rungs[level]
            lower = rung.ranking.candidate(len(rung.ranking) // self._eta)
            if lower is None:
                continue
            genotype, continues = rung.waiting.pop(lower)
            rung.ranking.set_waiting(lower, False)
            self._pending[number] = (lower, level, genotype, continues)
            return Proposal(
                genotype,
                parents=(lower,),
                fidelity=self._fidelity(level + 1),
                continues=lower if continues else None,
            )
        return None

    def _fidelity(self, level: int) -> Fidelity | None:
        """Of a rung; None for the full one."""
        if level == len(self._rungs):
            return None
        return Fidelity(self._rungs[level].epochs, self._full.fraction)


def _rungs(options: HalvingOptions, full_epochs: int, *, name: str) -> list[int]:
    if options.rungs is not None:
        if options.rungs[-1] != full_epochs:
            raise ValueError(
                f"strategy {name}: the last rung has {options.rungs[-1]} epochs and a full training {full_epochs}; set "
                f"the last of strategy.rungs to {full_epochs}, or training.epochs to {options.rungs[-1]}"
            )
        return list(options.rungs)
    rungs = [full_epochs]
    while len(rungs) < MOST_RUNGS and rungs[0] // options.eta >= 1:
        rungs.insert(0, rungs[0] // options.eta)
    return rungs
