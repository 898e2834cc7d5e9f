"""Recorded learning curves as an evaluator: values, costs, trials that go on, and successive halving on them."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from candidates import Alone, Free

from nord_hpc import job
from nord_hpc.cluster.parts import make_maker
from nord_hpc.cluster.trial_maker import Base, TrialMaker
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.evaluators.learning_curves import LearningCurvesEvaluator
from nord_hpc.spaces.spike_cells import OPERATIONS, SpikeCells
from nord_hpc.studies.simulate_search import simulate
from nord_hpc.trial import Fidelity, FinishedTrial, Proposal, TrialState

CURVES = Path(__file__).resolve().parents[3] / "shared" / "data" / "spikenas_bench" / "spikenas_cifar10.npz"

needs_curves = pytest.mark.skipif(not CURVES.exists(), reason=f"there is no {CURVES}")


def genotype_of(operations: Sequence[int]) -> list[str]:
    """The genotype of a row's operations."""
    genotype = [""] * 6
    for edge, number in zip((0, 1, 3, 2, 4, 5), operations, strict=True):
        genotype[edge] = OPERATIONS[number]
    return genotype


def make_job(
    path: Path | None = CURVES, *, epochs: int = 100, objective: dict[str, str] | None = None, **evaluator: Any
) -> job.Job:
    return job.from_mapping(
        {
            "name": "curves",
            "space": {"name": "spike_cells"},
            "strategy": {"name": "random_search"},
            "evaluator": {"name": "learning_curves", "path": None if path is None else str(path), **evaluator},
            "training": {"epochs": epochs},
            "objective": objective or {},
            "budget": {"trials": 1},
        },
        folder=Path("."),
    )


def make_evaluator(made: job.Job) -> LearningCurvesEvaluator:
    _, options = job.options_of("evaluator", made.evaluator, folder=Path("."))
    return LearningCurvesEvaluator(options, job=made, folder=Path("."), weights_folder=Path("."))


def maker_and_evaluator(**options: Any) -> tuple[TrialMaker, LearningCurvesEvaluator]:
    made = make_job(**options)
    evaluator = make_evaluator(made)
    return TrialMaker(made, space=SpikeCells(SpikeCells.Options()), evaluator=evaluator), evaluator


@needs_curves
def test_values_are_those_of_the_file() -> None:
    maker, evaluator = maker_and_evaluator()
    arrays = np.load(CURVES)
    for row in (0, 1, 781, 14842, 15624):
        genotype = genotype_of(arrays["ops"][row].tolist())
        for epochs in (1, 33, 100):
            proposal = Proposal(genotype, fidelity=Fidelity(epochs))
            trial = maker.make(0, proposal, virtual_start=0)
            outcome = evaluator.evaluate(trial, gang=Alone(), control=Free(), keep_above=None)
            assert outcome.state is TrialState.COMPLETED
            assert outcome.fitness == pytest.approx(arrays["val_acc_x250"][epochs - 1, row] / 250 / 100)
            assert outcome.metrics["accuracy"] == outcome.fitness
            assert outcome.metrics["index"] == row
            assert outcome.metrics["n_parameters"] == trial.n_parameters == arrays["params"][row]
            seconds = float(arrays["elapsed_s"][row]) / float(arrays["epochs_run"][row]) * epochs
            assert outcome.metrics["training_seconds"] == pytest.approx(seconds)
            assert trial.cost == pytest.approx(1e6 * seconds, abs=1)
            assert evaluator.test(trial, control=Free())["accuracy"] == pytest.approx(arrays["test_acc"][row] / 100)
    assert evaluator.describe() == f"recorded learning curves: {CURVES.resolve()}"


@needs_curves
def test_the_row_of_the_repositorys_own_search() -> None:
    """Validation 88.160, test 88.570 and 21,607,908 parameters are what its authors logged for row 14842."""
    maker, evaluator = maker_and_evaluator()
    trial = maker.make(0, Proposal(genotype_of([14842 // 5**k % 5 for k in range(6)])), virtual_start=0)
    outcome = evaluator.evaluate(trial, gang=Alone(), control=Free(), keep_above=None)
    assert outcome.fitness == 0.8816
    assert outcome.metrics["n_parameters"] == 21_607_908
    assert evaluator.test(trial, control=Free()) == {"accuracy": pytest.approx(0.8857)}


@needs_curves
def test_cells_without_a_way_to_the_output_know_nothing() -> None:
    maker, evaluator = maker_and_evaluator()
    trial = maker.make(0, Proposal(["spike_low", "none", "spike_high", "none", "none", "none"]), virtual_start=0)
    assert trial.infeasible is None
    assert evaluator.test(trial, control=Free()) == {"accuracy": 0.1}


@needs_curves
def test_a_trial_that_goes_on_costs_the_further_epochs() -> None:
    genotype = ["spike_low"] * 6
    for cost, unit in (("epochs", 1_000_000), ("seconds", None)):
        maker, _ = maker_and_evaluator(cost=cost)
        whole = maker.make(0, Proposal(genotype), virtual_start=0)
        first = maker.make(1, Proposal(genotype, fidelity=Fidelity(11)), virtual_start=0)
        base = Base(seed=first.seed, fidelity=first.fidelity)
        further = maker.make(2, Proposal(genotype, continues=1), virtual_start=0, base=base)
        assert further.cost == whole.cost - first.cost
        assert further.cost == pytest.approx(whole.cost * 0.89, abs=1)
        assert unit is None or (whole.cost, first.cost) == (100 * unit, 11 * unit)


@needs_curves
@pytest.mark.timing
def test_an_evaluation_takes_tens_of_microseconds() -> None:
    maker, evaluator = maker_and_evaluator()
    trial = maker.make(0, Proposal(["spike_low"] * 6), virtual_start=0)
    seconds = []
    for _ in range(300):
        began = time.perf_counter()
        evaluator.evaluate(trial, gang=Alone(), control=Free(), keep_above=None)
        seconds.append(time.perf_counter() - began)
    assert sorted(seconds)[150] < 100e-6


@needs_curves
def test_what_the_curves_do_not_have() -> None:
    evaluator = make_evaluator(make_job())
    cell = SpikeCells(SpikeCells.Options()).to_descriptor(["spike_low"] * 6)
    with pytest.raises(Infeasible, match="101 epochs are not on the curves, which have 1 to 100"):
        evaluator.examine(cell, Fidelity(101))
    with pytest.raises(Infeasible, match="0 epochs are not on the curves"):
        evaluator.examine(cell, Fidelity(0))
    with pytest.raises(Infeasible, match=r"the curves are of trainings on all data, not on a share of 0\.5"):
        evaluator.examine(cell, Fidelity(10, 0.5))
    other = NeuralDescriptor()
    other.add_layer("Conv2d", {"out_channels": 4, "kernel_size": 3})
    with pytest.raises(Infeasible, match="this is no cell of six edges"):
        evaluator.examine(other, Fidelity(10))


def test_bad_input_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NORD_HPC_LEARNING_CURVES", raising=False)
    with pytest.raises(BadInput, match=r"set evaluator\.path or NORD_HPC_LEARNING_CURVES to spikenas_cifar10\.npz"):
        make_evaluator(make_job(None))
    missing = tmp_path / "missing.npz"
    with pytest.raises(BadInput, match=re.escape(f"{missing}: cannot be read as learning curves: No such file")):
        make_evaluator(make_job(missing))
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK no archive")
    with pytest.raises(BadInput, match=re.escape(f"{broken}: cannot be read as learning curves: ")):
        make_evaluator(make_job(broken))
    monkeypatch.setenv("NORD_HPC_LEARNING_CURVES", str(broken))
    with pytest.raises(BadInput, match=re.escape(str(broken))):
        make_evaluator(make_job(None))
    other = tmp_path / "other.npz"
    small = {"val_acc_x250": np.zeros((3, 2)), "test_acc": np.zeros(2), "elapsed_s": np.ones(2)}
    np.savez(other, ops=np.zeros((2, 6)), params=np.zeros(2), epochs_run=np.ones(2), **small)
    with pytest.raises(BadInput, match=r"its cells are not the 15625 of SpikeNAS-Bench in their order"):
        make_evaluator(make_job(other))


@needs_curves
def test_a_job_that_asks_for_what_the_curves_do_not_have() -> None:
    with pytest.raises(BadInput, match=r"training\.epochs: 101 is not on the curves of .*; set 1 to 100"):
        make_evaluator(make_job(epochs=101))
    with pytest.raises(BadInput, match="objective: minimize loss is not in the curves; set metric accuracy and direct"):
        make_evaluator(make_job(objective={"metric": "loss", "direction": "minimize"}))


def best_percents(strategy: dict[str, Any], n_seeds: int, **budget: Any) -> list[float]:
    """The best full training of each of some searches, an epoch being a simulated second."""
    found = []
    evaluator = None
    for seed in range(n_seeds):
        made = job.from_mapping(
            {
                "name": "curves",
                "seed": seed,
                "space": {"name": "spike_cells"},
                "strategy": strategy,
                "evaluator": {"name": "learning_curves", "path": str(CURVES), "cost": "epochs"},
                "training": {"epochs": 100},
                "budget": budget,
                "order": {"virtual_gangs": 1},
            },
            folder=Path("."),
        )
        evaluator = evaluator or make_evaluator(made)
        searching, maker = make_maker(made, evaluator)
        result = simulate(made, strategy=searching, maker=maker, evaluator=evaluator)
        assert result.fitness is not None
        found.append(100 * result.fitness)
    return found


HALVING = {"name": "asha", "eta": 3, "rungs": [4, 11, 33, 100]}


@needs_curves
def test_halving_is_charged_for_further_epochs_alone() -> None:
    made = job.from_mapping(
        {
            "name": "curves",
            "space": {"name": "spike_cells"},
            "strategy": HALVING,
            "evaluator": {"name": "learning_curves", "path": str(CURVES), "cost": "epochs"},
            "training": {"epochs": 100},
            "budget": {"simulated_seconds": 1000, "simulated": "sum"},
            "order": {"virtual_gangs": 4},
        },
        folder=Path("."),
    )
    evaluator = make_evaluator(made)
    searching, maker = make_maker(made, evaluator)
    told: list[FinishedTrial] = []
    simulate(made, strategy=searching, maker=maker, evaluator=evaluator, on_commit=told.append)
    epochs = {finished.trial.number: finished.trial.fidelity.epochs for finished in told}
    assert set(epochs.values()) == {4, 11, 33, 100}
    for finished in told:
        trial = finished.trial
        before = 0 if trial.continues is None else epochs[trial.continues]
        assert trial.cost == 1_000_000 * (trial.fidelity.epochs - before)
        assert (trial.continues is None) == (trial.fidelity.epochs == 4)
    assert 900 < sum(finished.trial.cost for finished in told) / 1e6 <= 1000


@needs_curves
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_halving_finds_with_a_third_of_the_epochs_what_random_search_does(capsys: pytest.CaptureFixture[str]) -> None:
    """200 searches of 2,133 epochs against random search with 64 full trainings, and with as many epochs."""
    halving = best_percents(HALVING, 200, simulated_seconds=2133, simulated="sum")
    random = {"name": "random_search"}
    whole, equal = best_percents(random, 200, trials=64), best_percents(random, 200, simulated_seconds=2133)
    with capsys.disabled():
        print(f"\nbest validation: asha {fmean(halving):.3f}; random search, 6,400 epochs {fmean(whole):.3f}", end="")
        print(f", 2,133 epochs {fmean(equal):.3f}")
    assert fmean(halving) >= fmean(whole) - 0.06
    assert fmean(halving) >= fmean(equal) + 0.10
