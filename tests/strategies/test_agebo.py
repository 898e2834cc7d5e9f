"""AgEBO: the conformance suite on joint spaces, evolution of the networks, optimization of the hyperparameters."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pytest
from conformance.space_suite import make_space, text_of
from conformance.strategy_suite import FULL, Driver, SinglePoint, StrategySuite, ToySpace, evaluate, finish, schedule
from pydantic import ValidationError

from nord_hpc.strategies.agebo import AgEBO
from nord_hpc.strategies.forest import Forest
from nord_hpc.strategies.random_search import RandomSearch
from nord_hpc.trial import FinishedTrial, Proposal, TrialState

LR = {"type": "float", "low": 1e-4, "high": 1.0, "log": True}
GANG = {"type": "ordinal", "choices": [1, 2, 4]}
BATCH = {"type": "ordinal", "choices": [16, 32, 64, 128]}
TUNED = {
    "linear_scaling": True,
    "parameters": {"training.optimizer.lr": LR, "training.batch_size": BATCH, "resources.gang": GANG},
}
CONV = {"name": "conv_graph", "max_layers": 2, "channels": [4]}
FAST: dict[str, Any] = {"population": 8, "sample": 3, "initial": 4, "trees": 2, "candidates": 20}


def toy_space(architecture: Any = None, parameters: dict[str, Any] = TUNED) -> Any:
    """Toy words with real hyperparameters."""
    space = make_space("joint", {"architecture": CONV, "hyperparameters": parameters})
    space.architecture = architecture or ToySpace()
    return space


def toy_score(genotype: Any) -> float:
    """A good word, trained with a learning rate near 0.01 on two ranks."""
    tuned = genotype["hyperparameters"]
    wrong = abs(np.log10(tuned["training.optimizer.lr"]) + 2) / 4 + 0.2 * (tuned["resources.gang"] != 2)
    return float(ToySpace.score(genotype["architecture"]) - wrong)


# Each ask fits a forest, some milliseconds, and the suite makes thousands of asks: it is for the long run. Its rules
# are tested in short below and in test_every_strategy_on_every_space.py.
@pytest.mark.slow
class TestAgEBO(StrategySuite):
    name = "agebo"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": FAST,
        "mean": {**FAST, "liar": "mean", "kappa": 1.0, "window": 20},
    }
    spaces: ClassVar[dict[str, dict[str, Any] | None]] = {"joint": {"architecture": CONV, "hyperparameters": TUNED}}

    def test_a_space_where_no_mutation_leads_anywhere(self, variant: str) -> None:
        only = {"parameters": {"x": {"type": "categorical", "choices": ["only"]}}}
        driver = Driver(self.make(variant, toy_space(SinglePoint(), only)))
        for event in schedule(8, 100):
            driver.step(event)
        assert len({text_of(proposal.genotype) for proposal in driver.proposals}) == 1

    def test_finds_better_candidates_than_random_search(self, variant: str) -> None:
        found = [_best(self.make(variant, toy_space(), seed=seed)) for seed in range(6)]
        options = RandomSearch.Options()
        random = [_best(RandomSearch(options, space=toy_space(), seed=seed, full_fidelity=FULL)) for seed in range(6)]
        assert np.mean(found) > np.mean(random) + 0.1
        assert sum(a > b for a, b in zip(found, random, strict=True)) >= 5


def _toy(proposal: Proposal, number: int) -> FinishedTrial:
    return finish(proposal, number, TrialState.COMPLETED, toy_score(proposal.genotype))


def _best(strategy: Any, n_trials: int = 120) -> float:
    driver = Driver(strategy, _toy)
    while len(driver.told) < n_trials:
        if len(driver.outstanding) < 4:
            driver.ask()
        else:
            driver.tell()
    return max(finished.score for finished in driver.told.values() if finished.score is not None)


def agebo(*, seed: int = 0, space: Any = None, **options: Any) -> AgEBO:
    given = AgEBO.Options(**{**FAST, **options})
    return AgEBO(given, space=space or toy_space(), seed=seed, full_fidelity=FULL)


def point(word: Any, *, lr: float = 0.01, batch: int = 32, gang: int = 1) -> dict[str, Any]:
    tuned = {"training.optimizer.lr": lr, "training.batch_size": batch, "resources.gang": gang}
    return {"architecture": word, "hyperparameters": tuned}


def test_goes_on_from_a_saved_state_to_the_bit() -> None:
    undisturbed, resumed = Driver(agebo(window=15), evaluate), Driver(agebo(window=15), evaluate)
    for step, event in enumerate(schedule(4, 120)):
        undisturbed.step(event)
        resumed.step(event)
        if step % 7 == 0:
            state = json.loads(text_of(resumed.strategy.state_dict()))
            resumed.strategy = agebo(seed=99, window=15)
            resumed.strategy.load_state_dict(state)
    assert resumed.lines() == undisturbed.lines()
    assert any(proposal.parents for proposal in undisturbed.proposals)


class CountingSpace(ToySpace):
    """Genotypes that tell where they come from."""

    def __init__(self) -> None:
        super().__init__()
        self.n_samples = 0

    def sample(self, rng: Any) -> Any:
        self.n_samples += 1
        return [self.n_samples - 1]

    def mutate(self, genotype: Any, rng: Any) -> Any:
        return [*genotype, "mutated"]


def test_networks_are_samples_and_then_mutations_and_the_oldest_leaves() -> None:
    strategy = agebo(space=toy_space(CountingSpace()), population=3, sample=3)
    proposals = [strategy.ask(number) for number in range(3)]
    assert [proposal.genotype["architecture"] for proposal in proposals] == [[0], [1], [2]]
    for number, score in ((0, 0.9), (1, 0.5), (2, 0.1)):
        strategy.tell(finish(proposals[number], number, TrialState.COMPLETED, score))
    child = strategy.ask(3)
    # All three members are drawn, once each, and the best is the parent.
    assert (child.genotype["architecture"], child.parents) == ([0, "mutated"], (0,))
    strategy.tell(finish(child, 3, TrialState.COMPLETED, 0.2))
    assert strategy.ask(4).parents == (1,)


def test_samples_replace_what_failed_until_the_population_is_complete() -> None:
    strategy = agebo(space=toy_space(CountingSpace()), population=2, sample=1)
    first, second = strategy.ask(0), strategy.ask(1)
    strategy.tell(finish(first, 0, TrialState.COMPLETED, 0.5))
    strategy.tell(finish(second, 1, TrialState.FAILED, None))
    assert strategy.ask(2).genotype["architecture"] == [2]
    assert strategy.ask(3).parents == (0,)


def test_hyperparameters_follow_the_scores_whatever_the_network() -> None:
    """After 60 results in which two ranks and a learning rate near 0.1 are good, most candidates have them."""
    strategy = agebo(candidates=200, trees=10)
    rng = np.random.default_rng(0)
    space = toy_space()
    for number in range(60):
        genotype = space.sample(rng)
        tuned = genotype["hyperparameters"]
        score = float(tuned["resources.gang"] == 2) - abs(np.log10(tuned["training.optimizer.lr"]) + 1)
        strategy.tell(finish(Proposal(genotype), number, TrialState.COMPLETED, score))
    assert strategy.independent_asks() == 0
    asked = [strategy.ask(number).genotype["hyperparameters"] for number in range(60, 80)]
    assert Counter(tuned["resources.gang"] for tuned in asked)[2] >= 18
    assert all(0.02 < tuned["training.optimizer.lr"] < 0.5 for tuned in asked)


def test_failures_count_as_the_worst() -> None:
    """Learning rates above 0.01 fail, whatever the gang, and the other scores are alike."""

    def failing(proposal: Proposal, number: int) -> FinishedTrial:
        bad = proposal.genotype["hyperparameters"]["training.optimizer.lr"] > 0.01
        score = None if bad else 0.5 + 0.001 * (number % 10)
        return finish(proposal, number, TrialState.FAILED if bad else TrialState.COMPLETED, score)

    driver = Driver(agebo(trees=10), failing)
    for _ in range(80):
        driver.ask()
        driver.tell()
    late = [driver.told[number].score is not None for number in range(40, 80)]
    assert sum(late) >= 34


def test_the_liar_moves_parallel_asks() -> None:
    """A trial in flight with the worst score drives later asks away from it; with the best one it draws them."""

    def spread(liar: str) -> int:
        strategy = agebo(liar=liar, trees=10, candidates=100, initial=2)
        for number in range(40):
            gang, good = (1, 2, 4)[number % 3], (0.0, 1.0, 0.9)[number % 3]
            given = Proposal(point([0] * 12, lr=0.01, batch=32, gang=gang))
            strategy.tell(finish(given, number, TrialState.COMPLETED, good))
        asked = [strategy.ask(number).genotype["hyperparameters"]["resources.gang"] for number in range(40, 60)]
        return len(set(asked))

    assert spread("max") == 1
    assert spread("min") > 1


def test_results_before_the_first_ask_stand_for_samples() -> None:
    strategy = agebo(space=toy_space(CountingSpace()), population=4, sample=4, initial=3)
    for number in range(3):
        given = Proposal(point([f"given {number}"], lr=0.1))
        strategy.tell(finish(given, number, TrialState.COMPLETED, number / 10))
    assert strategy.independent_asks() == 0
    sample = strategy.ask(3)
    assert sample.genotype["architecture"] == [0]
    strategy.tell(finish(sample, 3, TrialState.COMPLETED, -1.0))
    assert strategy.ask(4).genotype["architecture"] == ["given 2", "mutated"]


def test_the_window_bounds_the_state() -> None:
    driver = Driver(agebo(window=10))
    for _ in range(60):
        driver.ask()
        driver.tell()
    state = driver.strategy.state_dict()
    assert len(state["seen"]) == 10 and len(state["population"]) == 8


def test_a_space_without_the_two_parts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strategy agebo needs a space of networks and hyperparameters, and ToySpace"):
        agebo(space=ToySpace())
    with pytest.raises(ValueError, match=r"set space.name to joint"):
        agebo(space=make_space("hyperparameters", {"parameters": {"x": LR}}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 4, "sample": 5}, "sample 5 is larger than population 4; set sample to 4 or less"),
        ({"kappa": -1.0}, "greater than or equal to 0"),
        ({"liar": "median"}, "'max', 'mean' or 'min'"),
        ({"trees": 0}, "greater than or equal to 1"),
        ({"xi": 0.1}, "xi"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AgEBO.Options.model_validate(options)


def test_a_forest_knows_what_it_was_told_and_where_it_is_unsure() -> None:
    rng = np.random.default_rng(0)
    x_NF = rng.random((300, 2))
    y_N = np.where(x_NF[:, 0] > 0.5, 1.0, 0.0)
    forest = Forest(x_NF, y_N, trees=20, seed=1)
    mean_M, deviation_M = forest.predict(np.array([[0.1, 0.5], [0.9, 0.5], [0.5, 0.5]]))
    assert mean_M[:2].tolist() == [0.0, 1.0] and deviation_M[:2].tolist() == [0.0, 0.0]
    again_M, _ = Forest(x_NF, y_N, trees=20, seed=1).predict(x_NF)
    other_M, _ = Forest(x_NF, rng.random(300), trees=20, seed=1).predict(x_NF)
    assert np.array_equal(again_M, forest.predict(x_NF)[0])
    assert not np.array_equal(again_M, other_M)
    # Leaves that hold several different targets at one place: the deviation is theirs, 0.5.
    _, deviation_M = Forest(np.zeros((200, 1)), np.arange(200) % 2, trees=50, seed=0).predict(np.zeros((1, 1)))
    assert deviation_M[0] == pytest.approx(0.5, abs=0.02)
