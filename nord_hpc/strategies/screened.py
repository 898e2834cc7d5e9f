"""A filter around any strategy: of several of its candidates only the one of best untrained score is trained.

The scores come from the evaluator: its fitness of trials of 0 epochs, such as a zero-cost score of "zero_cost".
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nord_hpc.interfaces import Done, SearchSpace, Strategy, Wait
from nord_hpc.strategies.inner import inner_strategy
from nord_hpc.trial import Fidelity, FinishedTrial, Json, Outcome, Proposal, Trial, TrialState

UNTRAINED = Fidelity(epochs=0)
LEAST = -sys.float_info.max
"""The score of those that have none that is a number."""
SCREENED_OUT = Outcome(TrialState.INFEASIBLE, reason="another candidate had a better score untrained")


class Screened:
    """Asks the inner strategy for `candidates` at a time and trains the best of them.

    Each candidate is a trial of 0 epochs first, and so is journaled, and evaluated wherever a rank is free. When all of
    a group have their score, the best one (ties go to the lowest number) becomes a trial of the inner strategy's
    fidelity, whose parent is the trial that scored it. The inner strategy is told the outcome of the training under
    the number of the candidate that it was asked for, and the others as infeasible, once the group is complete.

    Trials of 0 epochs count in the job's budget like others.
    """

    class Options(BaseModel):
        """What is screened.

        Attributes:
            strategy: the inner one, by its name and options: {name: regularized_evolution, population: 20}.
            candidates: of which one is trained.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        strategy: dict[str, Any] = Field(default_factory=lambda: {"name": "random_search"})
        candidates: int = Field(4, ge=2)

        @model_validator(mode="after")
        def _strategy_exists(self) -> Screened.Options:
            inner_strategy(self.strategy)
            return self

    def __init__(self, options: Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        if full_fidelity.epochs == 0:
            raise ValueError(
                "strategy screened trains some candidates and not others: set training.epochs to 1 or more"
            )
        cls, inner_options = inner_strategy(options.strategy)
        self._inner: Strategy = cls(inner_options, space=space, seed=seed, full_fidelity=full_fidelity)
        if getattr(self._inner, "continues_trials", False):
            raise ValueError(
                f"strategy screened cannot hold {options.strategy['name']}, whose trials continue each other; put "
                f"screened into it, not around it"
            )
        self._candidates = options.candidates
        # Oldest first; the last one may lack candidates still.
        self._groups: list[_Group] = []
        self._ready: list[_Candidate] = []
        # By the number of the trial that trains it.
        self._training: dict[int, _Candidate] = {}

    def ask(self, number: int) -> Proposal | Wait | Done:
        group = self._forget_dropped(number)
        if group is None and self._ready:
            return self._train(number)
        group = group or self._open_group()
        answer = self._inner.ask(number)
        if isinstance(answer, Proposal):
            group.lacking -= 1
            group.waiting[number] = (answer.parents, answer.fidelity)
            return Proposal(answer.genotype, answer.parents, UNTRAINED)
        if not self._training and not any(group.waiting for group in self._groups):
            # The inner strategy wants results, or has no more candidates: the group must do without.
            group.lacking = 0
            self._settle(group)
            if self._ready:
                return self._train(number)
            return answer
        return Wait()

    def tell(self, finished: FinishedTrial) -> None:
        number = finished.trial.number
        trained = self._training.pop(number, None)
        if trained is not None:
            own = replace(finished.trial, number=trained.number, parents=trained.parents)
            self._inner.tell(replace(finished, trial=own))
            return
        group = next((group for group in self._groups if number in group.waiting), None)
        if group is not None:
            self._score(group, finished)
        elif finished.trial.fidelity != UNTRAINED:
            self._inner.tell(finished)

    def independent_asks(self) -> int:
        if any(not group.lacking for group in self._groups):
            return len(self._ready)
        lacking = self._groups[-1].lacking if self._groups else self._candidates
        return len(self._ready) + min(lacking, self._inner.independent_asks())

    def state_dict(self) -> Json:
        return {
            "inner": self._inner.state_dict(),
            "groups": [group.to_json() for group in self._groups],
            "ready": [candidate.to_json() for candidate in self._ready],
            "training": [[number, candidate.to_json()] for number, candidate in sorted(self._training.items())],
        }

    def load_state_dict(self, state: Json) -> None:
        self._inner.load_state_dict(state["inner"])
        self._groups = [_Group.from_json(group) for group in state["groups"]]
        self._ready = [_Candidate.from_json(candidate) for candidate in state["ready"]]
        self._training = {number: _Candidate.from_json(candidate) for number, candidate in state["training"]}

    def _train(self, number: int) -> Proposal:
        candidate = self._ready.pop(0)
        self._training[number] = candidate
        return Proposal(candidate.genotype, (candidate.number,), candidate.fidelity)

    def _open_group(self) -> _Group:
        if not self._groups or not self._groups[-1].lacking:
            self._groups.append(_Group(self._candidates))
        return self._groups[-1]

    def _forget_dropped(self, number: int) -> _Group | None:
        """Forget an earlier proposal of this number; the group that lacks one by that, if it was a candidate."""
        training = self._training.pop(number, None)
        if training is not None:
            self._inner.tell(training.lost())
        for group in self._groups:
            if number in group.waiting:
                del group.waiting[number]
                group.lacking += 1
                return group
        return None

    def _score(self, group: _Group, finished: FinishedTrial) -> None:
        """Take in the score of one candidate; the worse one of it and the group's best so far is out."""
        parents, fidelity = group.waiting.pop(finished.trial.number)
        if finished.score is None:
            self._inner.tell(finished)
        else:
            candidate = _Candidate.of(finished, parents, fidelity)
            better, worse = candidate, group.best
            if worse is not None and worse.key() > candidate.key():
                better, worse = worse, candidate
            group.best = better
            if worse is not None:
                self._inner.tell(worse.lost())
        self._settle(group)

    def _settle(self, group: _Group) -> None:
        """If the group is complete, let its best go on to be trained."""
        if group.lacking or group.waiting:
            return
        self._groups.remove(group)
        if group.best is not None and group.best.score > LEAST:
            self._ready.append(group.best)
        elif group.best is not None:
            self._inner.tell(group.best.lost())


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A candidate with its score, and what the inner strategy proposed it with."""

    number: int
    genotype: Json
    parents: tuple[int, ...]
    fidelity: Fidelity | None
    score: float
    descriptor_hash: str
    n_parameters: int
    multiply_adds: int

    @classmethod
    def of(cls, finished: FinishedTrial, parents: tuple[int, ...], fidelity: Fidelity | None) -> _Candidate:
        trial = finished.trial
        score = finished.score
        # One that is no number is the worst, and JSON knows none of them.
        finite = score if score is not None and math.isfinite(score) else LEAST
        return cls(
            trial.number,
            trial.genotype,
            parents,
            fidelity,
            finite,
            trial.descriptor_hash,
            trial.n_parameters,
            trial.multiply_adds,
        )

    def key(self) -> tuple[float, int]:
        """Larger for the better one of two."""
        return self.score, -self.number

    def lost(self) -> FinishedTrial:
        """As it is told to the inner strategy when it is not trained."""
        trial = Trial(
            number=self.number,
            genotype=self.genotype,
            parents=self.parents,
            descriptor={},
            descriptor_hash=self.descriptor_hash,
            fidelity=UNTRAINED,
            seed=0,
            n_parameters=self.n_parameters,
            multiply_adds=self.multiply_adds,
        )
        return FinishedTrial(trial, SCREENED_OUT, None)

    def to_json(self) -> Json:
        fidelity = None if self.fidelity is None else self.fidelity.to_json()
        return {**asdict(self), "parents": list(self.parents), "fidelity": fidelity}

    @classmethod
    def from_json(cls, data: Json) -> _Candidate:
        return cls(**{**data, "parents": tuple(data["parents"]), "fidelity": _fidelity(data["fidelity"])})


@dataclass(slots=True)
class _Group:
    """Candidates of which one is trained.

    Attributes:
        lacking: candidates that are still to be asked for.
        waiting: numbers of those whose score is not there yet, with their parents and fidelity.
        best: of those that have one.
    """

    lacking: int
    waiting: dict[int, tuple[tuple[int, ...], Fidelity | None]] = field(default_factory=dict)
    best: _Candidate | None = None

    def to_json(self) -> Json:
        waiting = [
            [number, list(parents), None if fidelity is None else fidelity.to_json()]
            for number, (parents, fidelity) in sorted(self.waiting.items())
        ]
        return {"lacking": self.lacking, "waiting": waiting, "best": self.best and self.best.to_json()}

    @classmethod
    def from_json(cls, data: Json) -> _Group:
        waiting = {number: (tuple(parents), _fidelity(fidelity)) for number, parents, fidelity in data["waiting"]}
        return cls(data["lacking"], waiting, data["best"] and _Candidate.from_json(data["best"]))


def _fidelity(data: Json) -> Fidelity | None:
    return None if data is None else Fidelity(**data)
