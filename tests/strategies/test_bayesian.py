"""Bayesian optimization of hyperparameters: the conformance suite on its spaces, learning, conditions, refusals."""

from __future__ import annotations

import builtins
import json
from typing import Any, ClassVar

import numpy as np
import pytest
from conformance.space_suite import make_space, text_of
from conformance.strategy_suite import FULL, Driver, StrategySuite, ToySpace, finish, schedule
from pydantic import ValidationError

from nord_hpc.strategies.bayesian import Bayesian
from nord_hpc.strategies.random_search import RandomSearch
from nord_hpc.trial import FinishedTrial, Proposal, TrialState

pytest.importorskip("optuna", reason="needs the extra bayesian")

LR = {"type": "float", "low": 1e-5, "high": 1.0, "log": True}
PARAMETERS: dict[str, Any] = {
    "training.optimizer.lr": LR,
    "training.batch_size": {"type": "ordinal", "choices": [16, 32, 64, 128, 256]},
    "training.optimizer.name": {"type": "categorical", "choices": ["adam", "sgd"]},
    "training.optimizer.momentum": {
        "type": "float",
        "low": 0.0,
        "high": 1.0,
        "when": {"training.optimizer.name": "sgd"},
    },
    "width": {"type": "int", "low": 1, "high": 64, "log": True},
}


def loss(genotype: dict[str, Any]) -> float:
    """Best at lr 0.01, batch 64, sgd with momentum 0.9, width 16."""
    wrong = abs(np.log10(genotype["training.optimizer.lr"]) + 2) / 3
    wrong += abs(np.log2(genotype["training.batch_size"]) - 6) / 4
    wrong += abs(np.log2(genotype["width"]) - 4) / 6
    return float(wrong + abs(genotype.get("training.optimizer.momentum", 0.0) - 0.9))


def scored(proposal: Proposal, number: int) -> FinishedTrial:
    return finish(proposal, number, TrialState.COMPLETED, -loss(proposal.genotype))


# Each ask builds Parzen estimators, some milliseconds, and the suite makes thousands of asks: it is for the long run.
# Its rules are tested in short below and in test_every_strategy_on_every_space.py.
@pytest.mark.slow
class TestBayesian(StrategySuite):
    name = "bayesian"
    variants: ClassVar[dict[str, dict[str, Any]]] = {"default": {"initial": 6, "candidates": 6}}
    spaces: ClassVar[dict[str, dict[str, Any] | None]] = {"hyperparameters": {"parameters": PARAMETERS}}
    budget = 60

    def test_a_space_where_no_mutation_leads_anywhere(self, variant: str) -> None:
        single = make_space("hyperparameters", {"parameters": {"x": {"type": "categorical", "choices": ["only"]}}})
        driver = Driver(self.make(variant, single))
        for event in schedule(8, 100):
            driver.step(event)
        assert {text_of(proposal.genotype) for proposal in driver.proposals} == {'{"x": "only"}'}

    def test_finds_better_candidates_than_random_search(self, variant: str) -> None:
        space = make_space("hyperparameters", {"parameters": PARAMETERS})
        found, random = [], []
        for seed in range(6):
            found.append(_best(self.make(variant, space, seed=seed), self.budget))
            options = RandomSearch.Options()
            random.append(_best(RandomSearch(options, space=space, seed=seed, full_fidelity=FULL), self.budget))
        assert np.mean(found) > np.mean(random) + 0.1
        assert sum(a > b for a, b in zip(found, random, strict=True)) >= 5


def _best(strategy: Any, n_trials: int) -> float:
    driver = Driver(strategy, scored)
    while len(driver.told) < n_trials:
        if len(driver.outstanding) < 4:
            driver.ask()
        else:
            driver.tell()
    return max(finished.score for finished in driver.told.values() if finished.score is not None)


def bayesian(parameters: dict[str, Any] = PARAMETERS, *, seed: int = 0, **options: Any) -> Bayesian:
    space = make_space("hyperparameters", {"parameters": parameters})
    return Bayesian(Bayesian.Options(**options), space=space, seed=seed, full_fidelity=FULL)


def test_finds_better_points_than_random_search() -> None:
    space = make_space("hyperparameters", {"parameters": PARAMETERS})
    random = RandomSearch(RandomSearch.Options(), space=space, seed=0, full_fidelity=FULL)
    assert _best(bayesian(initial=6), 80) > _best(random, 80) + 0.1


def test_goes_on_from_a_saved_state_to_the_bit() -> None:
    undisturbed, resumed = Driver(bayesian(initial=5), scored), Driver(bayesian(initial=5), scored)
    for step, event in enumerate(schedule(4, 90)):
        undisturbed.step(event)
        resumed.step(event)
        if step % 7 == 0:
            state = json.loads(text_of(resumed.strategy.state_dict()))
            resumed.strategy = bayesian(initial=5, seed=99)
            resumed.strategy.load_state_dict(state)
    assert resumed.lines() == undisturbed.lines()
    assert len(undisturbed.proposals) > 40


def test_proposals_are_points_of_the_space() -> None:
    space = make_space("hyperparameters", {"parameters": PARAMETERS})
    driver = Driver(bayesian(initial=2))
    for event in schedule(5, 120):
        driver.step(event)
    assert all(space.contains(proposal.genotype) for proposal in driver.proposals)
    kinds = {proposal.genotype["training.optimizer.name"] for proposal in driver.proposals}
    assert kinds == {"adam", "sgd"}


def test_failures_are_avoided() -> None:
    """Trials with a learning rate above 0.003, seven of twelve samples, fail."""

    def failing(proposal: Proposal, number: int) -> FinishedTrial:
        good = proposal.genotype["x"] < 0.003
        return finish(proposal, number, TrialState.COMPLETED if good else TrialState.FAILED, 0.5 if good else None)

    driver = Driver(bayesian({"x": LR}, initial=10), failing)
    for _ in range(80):
        driver.ask()
        driver.tell()
    late = [finished.score is not None for number, finished in driver.told.items() if number >= 40]
    assert sum(late) >= 32


def test_parallel_asks_spread() -> None:
    """Nine candidates after the same results are nine different ones."""
    driver = Driver(bayesian({"x": LR}, initial=10), lambda p, n: finish(p, n, TrialState.COMPLETED, p.genotype["x"]))
    for _ in range(20):
        driver.ask()
        driver.tell()
    for _ in range(9):
        driver.ask()
    assert len({proposal.genotype["x"] for proposal in driver.proposals[20:]}) == 9


def test_results_before_the_first_ask_stand_for_samples_and_are_learned_from() -> None:
    def proposed(score: float) -> list[float]:
        strategy = bayesian({"x": LR}, initial=10)
        for number in range(30):
            x = 0.9 if number % 2 else 1e-5 * (1 + number)
            strategy.tell(finish(Proposal({"x": x}), number, TrialState.COMPLETED, score * x))
        assert strategy.independent_asks() == 0
        return [strategy.ask(number).genotype["x"] for number in range(30, 38)]

    assert np.median(proposed(1.0)) > 0.1
    assert np.median(proposed(-1.0)) < 0.01


def test_a_space_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strategy bayesian needs a space of parameters, and ToySpace has no method"):
        Bayesian(Bayesian.Options(), space=ToySpace(), seed=0, full_fidelity=FULL)


def test_without_optuna_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs the package optuna; install it with: pip install 'nord_hpc\[bayesian"):
        bayesian()


@pytest.mark.parametrize("options", [{"initial": 0}, {"candidates": 0}, {"gamma": 1}], ids=str)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        Bayesian.Options.model_validate(options)
