"""Screened: the suite of all strategies, which candidate of a group is trained, and what the inner strategy hears."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from conformance.strategy_suite import FULL, StrategySuite, ToySpace, finish
from pydantic import ValidationError

from nord_hpc.interfaces import Done, Wait
from nord_hpc.strategies.screened import UNTRAINED, Screened
from nord_hpc.trial import Fidelity, Proposal, TrialState

EVOLUTION = {"name": "regularized_evolution", "population": 6, "sample": 3}


class TestScreened(StrategySuite):
    name = "screened"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "evolution": {"strategy": EVOLUTION, "candidates": 3},
    }
    # It does not touch the space itself.
    spaces: ClassVar[dict[str, dict[str, Any] | None]] = {"toy": None}
    budget = 300


class Script:
    """An inner strategy that proposes its numbers, and then answers something else; it remembers what it is told."""

    def __init__(self, n: int = 1000, end: Any = None, fidelity: Fidelity | None = None) -> None:
        self.n, self.end, self.fidelity = n, end, fidelity
        self.asked: list[int] = []
        self.told: list[tuple[int, TrialState, float | None]] = []

    def ask(self, number: int) -> Any:
        if len(self.asked) == self.n:
            return self.end
        self.asked.append(number)
        return Proposal([number], fidelity=self.fidelity)

    def tell(self, finished: Any) -> None:
        self.told.append((finished.trial.number, finished.outcome.state, finished.score))

    def independent_asks(self) -> int:
        return self.n - len(self.asked)


def screened(inner: Any, *, candidates: int = 3) -> Any:
    strategy = Screened(Screened.Options(candidates=candidates), space=ToySpace(), seed=0, full_fidelity=FULL)
    strategy._inner = inner
    return strategy


def completed(proposal: Proposal, number: int, score: float) -> Any:
    return finish(proposal, number, TrialState.COMPLETED, score)


def test_the_best_of_a_group_is_trained_and_the_others_are_told_as_infeasible() -> None:
    inner = Script(fidelity=Fidelity(epochs=2))
    strategy = screened(inner)
    proposals = [strategy.ask(number) for number in range(3)]
    assert all(proposal.fidelity == UNTRAINED for proposal in proposals)
    for number, score in ((2, 5.0), (0, 7.0), (1, 7.0)):
        assert inner.told == [(2, TrialState.INFEASIBLE, None)] * (number == 1)
        strategy.tell(completed(proposals[number], number, score))
    # Of equal ones the lower number.
    assert inner.told == [(2, TrialState.INFEASIBLE, None), (1, TrialState.INFEASIBLE, None)]
    trained = strategy.ask(3)
    assert trained == Proposal([0], parents=(0,), fidelity=Fidelity(epochs=2))
    strategy.tell(completed(trained, 3, 0.9))
    assert inner.told[2:] == [(0, TrialState.COMPLETED, 0.9)]
    assert inner.asked == [0, 1, 2]


def test_candidates_that_fail_are_told_as_such_and_a_group_without_any_score_trains_nothing() -> None:
    inner = Script()
    strategy = screened(inner, candidates=2)
    for number, state in ((0, TrialState.FAILED), (1, TrialState.INFEASIBLE)):
        strategy.tell(finish(strategy.ask(number), number, state, None))
    assert inner.told == [(0, TrialState.FAILED, None), (1, TrialState.INFEASIBLE, None)]
    assert strategy.ask(2).fidelity == UNTRAINED
    strategy.tell(finish(strategy.ask(3), 3, TrialState.FAILED, None))
    strategy.tell(completed(Proposal([2], fidelity=UNTRAINED), 2, -4.0))
    assert strategy.ask(4) == Proposal([2], parents=(2,))


def test_a_training_that_fails_is_told_under_the_candidate_s_number() -> None:
    inner = Script()
    strategy = screened(inner, candidates=2)
    for number in range(2):
        strategy.tell(completed(strategy.ask(number), number, number))
    strategy.tell(finish(strategy.ask(2), 2, TrialState.FAILED, None))
    assert inner.told == [(0, TrialState.INFEASIBLE, None), (1, TrialState.FAILED, None)]


@pytest.mark.parametrize("end", [Wait(), Done()])
def test_a_group_is_closed_only_where_nothing_else_can_come(end: Any) -> None:
    inner = Script(2, end)
    strategy = screened(inner)
    proposals = [strategy.ask(0), strategy.ask(1)]
    strategy.tell(completed(proposals[0], 0, 1.0))
    assert isinstance(strategy.ask(2), Wait)
    strategy.tell(completed(proposals[1], 1, 2.0))
    trained = strategy.ask(2)
    assert trained == Proposal([1], parents=(1,))
    assert isinstance(strategy.ask(3), Wait)
    strategy.tell(completed(trained, 2, 0.5))
    assert strategy.ask(3) is end


def test_a_dropped_candidate_is_asked_for_again_and_a_dropped_training_given_up() -> None:
    inner = Script()
    strategy = screened(inner, candidates=2)
    strategy.ask(0)
    again = strategy.ask(0)
    assert inner.asked == [0, 0]
    strategy.tell(completed(again, 0, 1.0))
    strategy.tell(completed(strategy.ask(1), 1, 0.0))
    assert strategy.ask(2).parents == (0,)
    assert strategy.ask(2).fidelity == UNTRAINED
    assert inner.told == [(1, TrialState.INFEASIBLE, None), (0, TrialState.INFEASIBLE, None)]
    assert inner.asked == [0, 0, 1, 2]


def test_scores_that_lie_decide_what_is_trained() -> None:
    """A filter by the truth finds more in as many trainings than random search; by its opposite, less."""

    def mean_trained(sign: int) -> float:
        options = Screened.Options(candidates=8)
        strategy = Screened(options, space=ToySpace(), seed=1, full_fidelity=FULL)
        trained = []
        for number in range(450):
            proposal = strategy.ask(number)
            score = ToySpace.score(proposal.genotype)
            if proposal.fidelity == UNTRAINED:
                strategy.tell(completed(proposal, number, sign * score))
            else:
                trained.append(score)
                strategy.tell(completed(proposal, number, score))
        assert len(trained) == 50
        return float(np.mean(trained))

    assert mean_trained(1) > 0.35
    assert mean_trained(-1) < 0.15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": {"name": "evolution"}}, "unknown strategy 'evolution'"),
        ({"strategy": {"population": 3}}, "strategy.name None is no name of a strategy; set one of"),
        ({"strategy": {"name": "mine.py:Mine"}}, "strategy.name 'mine.py:Mine' is no name of a strategy"),
        ({"strategy": {**EVOLUTION, "population": 1}}, "strategy.population: 1 is wrong; set a number of at least 2"),
        ({"candidates": 1}, "candidates"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Screened.Options.model_validate(options)


def test_it_needs_trainings_to_screen_for() -> None:
    with pytest.raises(
        ValueError, match=r"strategy screened trains some candidates and not others: set training\.epochs"
    ):
        Screened(Screened.Options(), space=ToySpace(), seed=0, full_fidelity=Fidelity(epochs=0))
