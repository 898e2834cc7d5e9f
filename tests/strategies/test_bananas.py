"""BANANAS: the conformance suite on spaces with an encoding, the ensemble, its refits, and a measured table."""

from __future__ import annotations

import csv
import gzip
import json
from typing import Any, ClassVar

import numpy as np
import pytest
from conformance.space_suite import make_space
from conformance.strategy_suite import FULL, Driver, SinglePoint, StrategySuite, ToySpace, finish, schedule
from latency_table import ACCURACY
from pydantic import ValidationError

from nord_hpc.strategies.bananas import Bananas
from nord_hpc.strategies.ensemble import Ensemble
from nord_hpc.strategies.random_search import RandomSearch
from nord_hpc.strategies.regularized_evolution import RegularizedEvolution
from nord_hpc.trial import Proposal, TrialState

FAST: dict[str, Any] = {"initial": 6, "every": 8, "candidates": 12, "epochs": 5, "members": 2, "hidden": [8]}


class Words(ToySpace):
    """Words as one number a letter and value."""

    def encode(self, genotype: Any) -> list[float]:
        return [float(letter == value) for letter in genotype for value in range(4)]


class SingleWord(SinglePoint):
    def encode(self, genotype: Any) -> list[float]:
        return [float(letter) for letter in genotype]


# Each saved state that goes on fits its ensemble again, and the suite does so after every event.
@pytest.mark.slow
class TestBananas(StrategySuite):
    name = "bananas"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "default": FAST,
        "window": {**FAST, "every": 1, "window": 20, "incumbents": 3, "memory": 30},
    }
    spaces: ClassVar[dict[str, dict[str, Any] | None]] = {"nasbench201": {}, "nasbench101": {"vertices": 5}}

    def test_a_space_where_no_mutation_leads_anywhere(self, variant: str) -> None:
        check_single_point(self.make(variant, SingleWord()))

    def test_finds_better_candidates_than_random_search(self, variant: str) -> None:
        if variant == "window":
            pytest.skip("what forgets nearly all learns little")
        found = [self._best(self.make(variant, Words(), seed=seed), 200) for seed in range(8)]
        options = RandomSearch.Options()
        random = [
            self._best(RandomSearch(options, space=Words(), seed=seed, full_fidelity=FULL), 200) for seed in range(8)
        ]
        assert np.mean(found) > np.mean(random) + 0.1
        assert sum(a > b for a, b in zip(found, random, strict=True)) >= 7


def bananas(space: Any = None, seed: int = 0, **options: Any) -> Bananas:
    given = Bananas.Options.model_validate({**FAST, **options})
    return Bananas(given, space=space or Words(), seed=seed, full_fidelity=FULL)


def check_single_point(strategy: Bananas) -> None:
    driver = Driver(strategy)
    for event in schedule(8, 100):
        driver.step(event)
    assert {str(proposal.genotype) for proposal in driver.proposals} == {str([0] * 12)}


def complete(strategy: Bananas, number: int, score: float | None = None) -> Proposal:
    proposal = strategy.ask(number)
    value = ToySpace.score(proposal.genotype) if score is None else score
    strategy.tell(finish(proposal, number, TrialState.COMPLETED, value))
    return proposal


def test_an_exhausted_space_gives_its_points_again() -> None:
    check_single_point(bananas(SingleWord()))


def test_an_ensemble_learns_a_function_and_knows_where_it_knows_less() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    x = rng.uniform(-1, 1, (200, 2))
    y = 100 + 10 * np.abs(x[:, 0]) - 5 * x[:, 1]
    made = [Ensemble(x, y, members=5, hidden=(20, 20), epochs=100, lr=0.01, batch=32, seed=seed) for seed in (1, 1, 2)]
    inside = rng.uniform(-1, 1, (100, 2))
    mean, deviation = made[0].predict(inside)
    assert np.abs(mean - (100 + 10 * np.abs(inside[:, 0]) - 5 * inside[:, 1])).mean() < 0.5
    assert made[0].predict(4 * inside)[1].mean() > 3 * deviation.mean()
    assert (made[1].predict(inside)[0] == mean).all() and (made[2].predict(inside)[0] != mean).any()


def test_gradients_are_those_of_the_mean_absolute_error() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    x, y = rng.normal(size=(7, 3)), rng.normal(size=7)
    ensemble = Ensemble(x, y, members=2, hidden=(4, 3), epochs=1, lr=0.01, batch=7, seed=3)
    for parameter in ensemble._parameters:  # none at the bend of a ReLU, as biases of 0 may be
        parameter += rng.normal(size=parameter.shape) / 3
    inputs, target = np.broadcast_to(x, (2, 7, 3)), np.broadcast_to(y, (2, 7))

    def loss() -> float:
        return float(np.abs(ensemble._forward(inputs)[-1][:, :, 0] - target).mean(axis=1).sum())

    gradients = ensemble._gradients(inputs, target)
    for parameter, gradient in zip(ensemble._parameters, gradients, strict=True):
        for place in np.ndindex(parameter.shape):
            before = parameter[place]
            step = 1e-6
            parameter[place] = before + step
            above = loss()
            parameter[place] = before - step
            below = loss()
            parameter[place] = before
            assert gradient[place] == pytest.approx((above - below) / (2 * step), abs=1e-5)


def test_equal_scores_are_no_trouble() -> None:
    ensemble = Ensemble(np.ones((3, 2)), np.full(3, 0.5), members=3, hidden=(4,), epochs=3, lr=0.01, batch=2, seed=0)
    mean, _ = ensemble.predict(np.ones((1, 2)))
    assert np.isfinite(mean).all()


def test_candidates_are_mutations_of_the_incumbents_that_were_not_asked() -> None:
    strategy = bananas(incumbents=2, candidates=30)
    told = {number: complete(strategy, number) for number in range(30)}
    best = sorted(told, key=lambda number: (-ToySpace.score(told[number].genotype), number))[:2]
    seen = [proposal.genotype for proposal in told.values()]
    for number in range(30, 40):
        proposal = strategy.ask(number)
        assert proposal.parents[0] in best and proposal.genotype not in seen
        parent = told[proposal.parents[0]].genotype
        assert 1 <= sum(a != b for a, b in zip(parent, proposal.genotype, strict=True)) <= 2
        seen.append(proposal.genotype)


def test_the_ensemble_is_fitted_again_after_every_few_results() -> None:
    strategy = bananas(initial=8, every=5)
    fits = []
    for number in range(40):
        complete(strategy, number)
        state = strategy.state_dict()
        if not fits or fits[-1][0] != state["fitted"]:
            fits.append((state["fitted"], state["fit_seed"]))
    assert [n for n, _ in fits] == [0, 8, 13, 18, 23, 28, 33, 38]
    assert len({seed for _, seed in fits}) == len(fits)


@pytest.mark.parametrize("n_told", [3, 11, 14])
def test_a_saved_state_goes_on_to_the_bit(n_told: int) -> None:
    strategy = bananas(initial=4, every=5)
    for number in range(n_told):
        complete(strategy, number)
    other = bananas(initial=4, every=5, seed=99)
    other.load_state_dict(json.loads(json.dumps(strategy.state_dict())))
    for number in range(n_told, n_told + 12):
        assert complete(other, number) == complete(strategy, number)


def test_old_results_are_forgotten_but_for_the_incumbents() -> None:
    strategy = bananas(window=10, incumbents=2, every=4)
    scores = [0.9, 0.8, *[0.1 + k / 1000 for k in range(40)]]
    for number, score in enumerate(scores):
        complete(strategy, number, score)
    known = [number for _, number, _ in strategy.state_dict()["known"]]
    assert known[:2] == [0, 1] and known[2:] == list(range(known[2], 42)) and 10 <= len(known[2:]) <= 14


def test_path_encodings_come_first() -> None:
    space = make_space("nasbench201", {})
    cell = "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"
    codes = {name: bananas(space, encoding=name)._encode(cell) for name in ("auto", "paths", "plain")}
    assert codes["auto"] == codes["paths"] == space.encode_paths(cell)
    assert codes["plain"] == space.encode(cell) != codes["paths"]


def test_spaces_without_an_encoding_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ToySpace has no encode_paths and no encode; set space.name to a space"):
        Bananas(Bananas.Options(), space=ToySpace(), seed=0, full_fidelity=FULL)
    with pytest.raises(ValueError, match="Words has no encode_paths; set"):
        bananas(encoding="paths")


@pytest.mark.parametrize("options", [{"initial": 1}, {"members": 1}, {"window": 1}, {"encoding": "cells"}, {"lr": 0}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        Bananas.Options.model_validate(options)


class Table:
    """NAS-Bench-201, CIFAR-10-valid: 12 epochs guide, 200 epochs count, 12,000 seconds may be used."""

    def __init__(self) -> None:
        with gzip.open(ACCURACY, "rt", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.short = {row["arch"]: float(row["c10_val_12"]) for row in rows}
        self.long = {row["arch"]: float(row["c10_val_200"]) for row in rows}
        # Twelve epochs of training and one pass over the validation part.
        seconds = {row["arch"]: float(row["time200_c10v"]) / 200 for row in rows}
        self.seconds = {arch: 12 * epoch + 1.0 + 0.25 * epoch for arch, epoch in seconds.items()}

    def searched(self, strategy: Any, *, budget: float = 12_000) -> float:
        used, number, best = 0.0, 0, ("", 0.0)
        while True:
            proposal = strategy.ask(number)
            used += self.seconds[proposal.genotype]
            if used > budget:
                return self.long[best[0]]
            score = self.short[proposal.genotype]
            best = max(best, (proposal.genotype, score), key=lambda entry: entry[1])
            strategy.tell(finish(proposal, number, TrialState.COMPLETED, score))
            number += 1


def differences(n_seeds: int) -> Any:
    """By seed, how much higher the validation accuracy is, in percent, than that of regularized evolution."""
    table, space = Table(), make_space("nasbench201", {})
    evolution = RegularizedEvolution.Options(population=10, sample=3)
    return np.array(
        [
            table.searched(Bananas(Bananas.Options(), space=space, seed=seed, full_fidelity=FULL))
            - table.searched(RegularizedEvolution(evolution, space=space, seed=seed, full_fidelity=FULL))
            for seed in range(n_seeds)
        ]
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not ACCURACY.exists(), reason="the table of NAS-Bench-201 is not here")
def test_it_is_at_least_as_good_as_regularized_evolution_at_equal_budget() -> None:
    found = differences(50)
    assert found.mean() - 1.96 * found.std(ddof=1) / np.sqrt(len(found)) > -0.05
