"""ASHA: the conformance suite, the rule of promotion, what continues what, and recorded learning curves."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from conformance.strategy_cost import early_and_late_seconds
from conformance.strategy_suite import FULL, StrategySuite, ToySpace
from halving_runs import (
    CURVES,
    HUNDRED,
    NINE,
    RUNGS,
    CurveSpace,
    NumberedSpace,
    ask,
    best_of_random,
    best_within,
    result,
)
from pydantic import ValidationError

from nord_hpc.interfaces import Done, Wait
from nord_hpc.strategies.asha import Asha
from nord_hpc.strategies.halving import Halving
from nord_hpc.trial import Fidelity, FinishedTrial, Proposal

EVOLUTION = {"name": "regularized_evolution", "population": 12, "sample": 4}


class TestAsha(StrategySuite):
    name = "asha"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "random": {"eta": 2},
        "evolution": {"rungs": [1, 4], "strategy": EVOLUTION, "learns_from": "lowest"},
    }
    learns = False  # on words whose score needs no training


def asha(space: Any = None, **options: Any) -> Asha:
    given = Asha.Options.model_validate({"rungs": RUNGS, **options})
    return Asha(given, space=space or NumberedSpace(), seed=0, full_fidelity=NINE)


def fill(strategy: Halving, scores: list[float | None]) -> None:
    """The first results of the lowest rung."""
    proposals = [ask(strategy, number) for number in range(len(scores))]
    for number, (proposal, score) in enumerate(zip(proposals, scores, strict=True)):
        assert proposal.fidelity == Fidelity(RUNGS[0]) and proposal.continues is None
        strategy.tell(result(proposal, number, score))


def test_the_best_of_eta_goes_on_from_where_it_is() -> None:
    strategy = asha()
    fill(strategy, [0.1, 0.7, 0.3])
    promoted = ask(strategy, 3)
    assert promoted == Proposal([1], parents=(1,), fidelity=Fidelity(3), continues=1)
    assert ask(strategy, 4).genotype == [3], "one of three has gone on: the next is a new one"


def test_a_third_of_each_rung_and_the_highest_first() -> None:
    strategy = asha()
    fill(strategy, [k / 10 for k in range(9)])
    second = [ask(strategy, number) for number in (9, 10, 11)]
    assert [proposal.continues for proposal in second] == [8, 7, 6]
    assert ask(strategy, 12).continues is None
    for number, proposal in zip((9, 10, 11), second, strict=True):
        strategy.tell(result(proposal, number, {9: 0.5, 10: 0.9, 11: 0.6}[number]))
    top = ask(strategy, 13)
    assert top == Proposal([7], parents=(10,), fidelity=None, continues=10)
    strategy.tell(result(top, 13, 0.95))
    assert ask(strategy, 14).continues is None, "there is nothing above the last rung"


def test_a_late_result_can_promote_an_early_one() -> None:
    strategy = asha()
    fill(strategy, [0.9, 0.8, 0.1])
    assert ask(strategy, 3).continues == 0
    for number in (4, 5, 6):
        strategy.tell(result(ask(strategy, number), number, 0.0))
    assert ask(strategy, 7).continues == 1


def test_failures_count_as_the_worst_of_their_rung() -> None:
    strategy = asha()
    fill(strategy, [None, None, 0.2])
    promoted = ask(strategy, 3)
    assert promoted.continues == 2
    strategy.tell(result(promoted, 3, None))
    assert ask(strategy, 4).continues is None


def test_equal_scores_go_on_by_number() -> None:
    strategy = asha()
    fill(strategy, [0.5] * 6)
    assert [ask(strategy, number).continues for number in (6, 7, 8)] == [0, 1, None]


def test_what_took_its_result_from_another_has_no_state_to_go_on_from() -> None:
    strategy = asha()
    for number in range(3):
        strategy.tell(result(ask(strategy, number), number, 0.9 - number / 10, runs=False))
    assert ask(strategy, 3) == Proposal([0], parents=(0,), fidelity=Fidelity(3), continues=None)


def test_a_dropped_promotion_waits_again() -> None:
    strategy = asha()
    fill(strategy, [0.1, 0.7, 0.3])
    assert ask(strategy, 3).continues == 1
    assert ask(strategy, 3).continues == 1
    assert ask(strategy, 4).continues is None


def test_the_inner_strategy_asks_again_for_what_was_dropped() -> None:
    strategy = asha()
    assert ask(strategy, 3).genotype == [0]
    fill(strategy, [0.1, 0.7, 0.3])
    assert ask(strategy, 3).genotype == [4], "though another could go on"
    assert ask(strategy, 4).continues == 1


class Recorder:
    """An inner strategy that keeps what it is told, and ends after some asks."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.told: list[tuple[int, int]] = []

    def ask(self, number: int) -> Any:
        self.n -= 1
        return Proposal([number]) if self.n >= 0 else Done()

    def tell(self, finished: Any) -> None:
        self.told.append((finished.trial.number, finished.trial.fidelity.epochs))


@pytest.mark.parametrize(
    ("learns_from", "told"), [("all", [(0, 1), (1, 1), (2, 1), (3, 3)]), ("lowest", [(0, 1), (1, 1), (2, 1)])]
)
def test_what_the_inner_strategy_learns_from(learns_from: str, told: Any) -> None:
    strategy = asha(learns_from=learns_from)
    recorder = Recorder(3)
    strategy._inner = recorder  # type: ignore[assignment]
    fill(strategy, [0.1, 0.7, 0.3])
    strategy.tell(result(ask(strategy, 3), 3, 0.8))
    assert recorder.told == told


def test_it_is_done_when_the_inner_strategy_is_and_nothing_can_go_on() -> None:
    strategy = asha()
    strategy._inner = Recorder(3)  # type: ignore[assignment]
    fill(strategy, [0.1, 0.7, 0.3])
    promoted = ask(strategy, 3)
    assert isinstance(strategy.ask(4), Wait)
    strategy.tell(result(promoted, 3, 0.8))
    assert isinstance(strategy.ask(4), Done)


def test_rungs_follow_from_the_epochs_of_a_full_training() -> None:
    for epochs, rungs in [(100, [3, 11, 33, 100]), (27, [1, 3, 9, 27]), (4, [1, 4]), (1, [1])]:
        strategy = Asha(Asha.Options(), space=ToySpace(), seed=0, full_fidelity=Fidelity(epochs, 0.5))
        assert [*(rung.epochs for rung in strategy._rungs), epochs] == rungs
        first = ask(strategy, 0)
        assert first.fidelity == (None if epochs == 1 else Fidelity(rungs[0], 0.5))


def test_results_on_another_share_of_the_data_are_in_no_rung() -> None:
    strategy = asha()
    for number in range(9):
        strategy.tell(result(Proposal([number], fidelity=Fidelity(1, 0.1)), number, 0.9))
    assert ask(strategy, 9).continues is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rungs": [1, 3, 3]}, r"rungs \[1, 3, 3\] do not rise from 1 or more; set them in ascending order"),
        ({"rungs": [0, 3]}, "do not rise from 1 or more"),
        ({"eta": 1}, "greater than or equal to 2"),
        ({"strategy": {"name": "randon_search"}}, "did you mean random_search"),
        ({"strategy": {"population": 3}}, "strategy.name None is no name of a strategy; set one of "),
        ({"strategy": {"name": "regularized_evolution", "population": 1}}, "strategy.population: 1 is wrong; set a "),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Asha.Options.model_validate(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rungs": [1, 3]},
            "asha: the last rung has 3 epochs and a full training 4; set the last of strategy.rungs to 4",
        ),
        ({"strategy": {"name": "asha"}}, "strategy asha cannot hold asha, whose trials continue each other too"),
    ],
)
def test_jobs_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Asha(Asha.Options.model_validate(options), space=ToySpace(), seed=0, full_fidelity=FULL)


@pytest.mark.timing
def test_asks_and_tells_stay_cheap_with_many_trials_behind() -> None:
    strategy = asha(ToySpace())

    def climbing(proposal: Proposal, number: int) -> FinishedTrial:
        return result(proposal, number, ToySpace.score(proposal.genotype) + number % 7)

    early, late = early_and_late_seconds(strategy, between=10_000, result=climbing)
    assert late < 3 * early


def against_random(n_seeds: int) -> tuple[float, float, float]:
    """Mean best validation accuracy: of ASHA with 2,133 epochs, of 64 full trainings, and of 21 (2,133 epochs)."""
    space = CurveSpace()
    options = Asha.Options.model_validate({"eta": 3, "rungs": [4, 11, 33, 100]})
    halved = [
        best_within(Asha(options, space=space, seed=seed, full_fidelity=HUNDRED), space, budget=2133)
        for seed in range(n_seeds)
    ]
    many = [best_of_random(space, seed, 64) for seed in range(n_seeds)]
    few = [best_of_random(space, seed, 21) for seed in range(n_seeds)]
    return float(np.mean(halved)), float(np.mean(many)), float(np.mean(few))


@pytest.mark.skipif(not CURVES.exists(), reason="the recorded learning curves are not here")
def test_a_third_of_the_epochs_find_what_random_search_finds() -> None:
    halved, many, few = against_random(60)
    assert halved >= many - 0.06
    assert halved >= few + 0.10


@pytest.mark.slow
@pytest.mark.skipif(not CURVES.exists(), reason="the recorded learning curves are not here")
def test_a_third_of_the_epochs_find_what_random_search_finds_over_200_seeds() -> None:
    halved, many, few = against_random(200)
    assert halved >= many - 0.06
    assert halved >= few + 0.10
