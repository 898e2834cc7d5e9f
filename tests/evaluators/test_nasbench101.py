"""The evaluator that looks candidates up, and the one for scripts."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from candidates import Alone, Free, make_evaluator, make_job, make_trial
from nasbench101_example import (
    BEST_HASH,
    CHAIN,
    FIRST_HASH,
    FOUR,
    POOLED,
    ROOT,
    matrix_of,
    needs_files,
    payload,
    write_records,
)

from nord_hpc import job
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible, SearchStopped
from nord_hpc.evaluators.nasbench101 import BenchmarkEvaluator, NasBench101Evaluator
from nord_hpc.nasbench101 import INPUT, MAXPOOL3X3, OUTPUT, ModelSpec, to_descriptor
from nord_hpc.spaces.nasbench101 import NasBench101
from nord_hpc.trial import Fidelity, Trial, TrialState

FULL = Fidelity(epochs=108)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORD_HPC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NORD_HPC_NASBENCH101", raising=False)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two cells: CHAIN with three trainings of 108 epochs and one of 4, POOLED with one of 108 and no time."""
    return write_records(
        tmp_path / "small.tfrecord",
        *[payload(CHAIN, accuracy=accuracy, seconds=1000 + 8 * accuracy) for accuracy in (0.5, 0.625, 0.875)],
        payload(CHAIN, epochs=4, accuracy=0.25, seconds=40),
        payload(POOLED, accuracy=0.75, seconds=0, n_parameters=1000),
    )


def evaluator(
    path: Path | None, *, epochs: int = 108, objective: dict[str, str] | None = None, **options: Any
) -> NasBench101Evaluator:
    made = job.from_mapping(
        {
            "name": "table",
            "space": {"name": "nasbench101"},
            "strategy": {"name": "random_search"},
            "evaluator": {"name": "nasbench101", "path": None if path is None else str(path), **options},
            "training": {"epochs": epochs},
            "objective": objective or {},
            "budget": {"trials": 1},
        },
        folder=Path("."),
    )
    cls, checked = job.options_of("evaluator", made.evaluator, folder=Path("."))
    folder = Path(".") if path is None else path.parent
    result: NasBench101Evaluator = cls(checked, job=made, folder=folder, weights_folder=folder)
    return result


def trial(spec: ModelSpec, *, seed: int = 0, epochs: int = 108) -> Trial:
    net = to_descriptor(spec)
    return Trial(0, None, (), net.to_json(), net.canonical_hash(), Fidelity(epochs), seed=seed)


def evaluate(made: NasBench101Evaluator, candidate: Trial) -> Any:
    return made.evaluate(candidate, gang=Alone(), control=Free(), keep_above=None)


def test_a_sampled_training_follows_from_the_seed(small: Path) -> None:
    made = evaluator(small)
    outcomes = [evaluate(made, trial(CHAIN, seed=seed)) for seed in range(300)]
    counts = Counter(outcome.fitness for outcome in outcomes)
    assert counts.keys() == {0.5, 0.625, 0.875}
    assert min(counts.values()) > 70
    again = evaluator(small)
    assert [evaluate(again, trial(CHAIN, seed=seed)).fitness for seed in range(300)] == [o.fitness for o in outcomes]
    for seed, outcome in enumerate(outcomes[:10]):
        assert outcome.state is TrialState.COMPLETED
        assert outcome.metrics["accuracy"] == outcome.fitness
        assert outcome.metrics["training_seconds"] == 1000 + 8 * outcome.fitness
        assert outcome.metrics["n_parameters"] == 1234567
        assert outcome.metrics["module_hash"] == CHAIN.module_hash
        assert outcome.seconds < 1
        assert made.test(trial(CHAIN, seed=seed), control=Free()) == {"accuracy": outcome.fitness - 0.01}
    assert outcomes[0].provenance == {"table": "small.tfrecord", "repeat": "sampled"}


def test_the_mean_of_the_trainings(small: Path) -> None:
    made = evaluator(small, repeat="mean")
    outcome = evaluate(made, trial(CHAIN, seed=5))
    assert outcome.fitness == fmean([0.5, 0.625, 0.875])
    assert outcome.metrics["training_seconds"] == pytest.approx(1000 + 8 * outcome.fitness)
    assert made.test(trial(CHAIN), control=Free())["accuracy"] == pytest.approx(outcome.fitness - 0.01)


def test_the_budget_is_the_trials(small: Path) -> None:
    made = evaluator(small)
    assert evaluate(made, trial(CHAIN, epochs=4)).fitness == 0.25
    assert evaluator(small, epochs=4)
    assert made.examine(to_descriptor(CHAIN), Fidelity(4)).cost == 40_000_000


def test_the_cost_is_the_tables_time_whatever_the_result(small: Path) -> None:
    examination = evaluator(small).examine(to_descriptor(CHAIN), FULL)
    assert examination == evaluator(small, repeat="mean").examine(to_descriptor(CHAIN), FULL)
    assert examination.cost == pytest.approx(1e6 * (1000 + 8 * fmean([0.5, 0.625, 0.875])), abs=1)
    assert examination.n_parameters == 1234567
    # No time is known of the other cell: its parameters tell.
    assert evaluator(small).examine(to_descriptor(POOLED), FULL).cost == 108 * (3_000_000 + 900)


def test_what_the_table_does_not_have_is_infeasible(small: Path) -> None:
    made = evaluator(small)
    other = ModelSpec(matrix_of(3, "0-1 1-2"), [INPUT, MAXPOOL3X3, OUTPUT])
    with pytest.raises(Infeasible, match=f"cell {other.module_hash} is not among the 2 cells of the table"):
        made.examine(to_descriptor(other), FULL)
    with pytest.raises(
        Infeasible, match=f"cell {POOLED.module_hash} has no training of 4 epochs in the table, whose bud"
    ):
        made.examine(to_descriptor(POOLED), Fidelity(4))
    with pytest.raises(Infeasible, match="has no training of 50 epochs in the table, whose budgets are 4, 108"):
        made.examine(to_descriptor(CHAIN), Fidelity(50))
    with pytest.raises(Infeasible, match=r"the table knows trainings on all data, none on a share of 0\.5"):
        made.examine(to_descriptor(CHAIN), Fidelity(108, 0.5))
    convolution = NeuralDescriptor()
    convolution.add_layer("Conv2d", {"out_channels": 4, "kernel_size": 3}, "conv")
    with pytest.raises(Infeasible, match=r"layer 'conv' \(Conv2d\) is no vertex of NAS-Bench-101"):
        made.examine(convolution, FULL)
    nothing = to_descriptor(CHAIN)
    nothing.disconnect_layers("input", "1")
    with pytest.raises(Infeasible, match="no path from 'input' to 'output'"):
        made.examine(nothing, FULL)


def test_settings_that_the_table_cannot_follow(small: Path) -> None:
    with pytest.raises(BadInput, match=r"training\.epochs: 5 is no budget of .*small\.tfrecord; set one of 4, 108"):
        evaluator(small, epochs=5)
    with pytest.raises(BadInput, match="objective: maximize macro_f1 is not in the table; set metric accuracy and dir"):
        evaluator(small, objective={"metric": "macro_f1"})
    with pytest.raises(BadInput, match="objective: minimize accuracy is not in the table"):
        evaluator(small, objective={"direction": "minimize"})
    with pytest.raises(BadInput, match=r"set path \(evaluator\.path in a job\) or NORD_HPC_NASBENCH101"):
        evaluator(None)
    with pytest.raises(BadInput, match=r'evaluator\.repeat: "best" is not a choice; set \'sampled\' or \'mean\''):
        evaluator(small, repeat="best")


def test_a_stop_is_heard(small: Path) -> None:
    class Stop:
        def check(self) -> None:
            raise SearchStopped("enough")

    with pytest.raises(SearchStopped):
        evaluator(small).evaluate(trial(CHAIN), gang=Alone(), control=Stop(), keep_above=None)


def test_many_networks_are_remembered_but_not_too_many(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nord_hpc.evaluators.nasbench101.evaluator.CELLS_KEPT", 1)
    made = evaluator(small)
    for spec, fitness in [(CHAIN, 0.25), (POOLED, 0.75), (CHAIN, 0.25)]:
        assert evaluate(made, trial(spec, epochs=4 if spec is CHAIN else 108)).fitness == fitness


@needs_files
def test_values_of_a_real_file() -> None:
    made = evaluator(FOUR, repeat="mean")
    best = ModelSpec(matrix_of(4, "0-1 0-2 0-3 1-2 2-3"), [INPUT, "conv3x3-bn-relu", "conv3x3-bn-relu", OUTPUT])
    assert best.module_hash == BEST_HASH
    assert round(evaluate(made, trial(best)).fitness, 4) == 0.9425
    assert round(made.test(trial(best), control=Free())["accuracy"], 4) == 0.9335
    first = ModelSpec.from_text("0110001100010000", "input,conv1x1-bn-relu,conv3x3-bn-relu,output")
    seconds = {evaluate(evaluator(FOUR), trial(first, seed=s, epochs=36)).metrics["training_seconds"] for s in range(9)}
    assert len(seconds) == 3 and any(abs(value - 668.590) < 0.001 for value in seconds)
    assert first.module_hash == FIRST_HASH


@pytest.mark.parametrize("edges", ["0-1 0-2 0-3 0-4 0-5 0-6 1-2 1-3 1-4", "0-1 0-3 1-3 1-6 2-6 3-6"])
def test_whole_networks_are_trained_by_the_ordinary_evaluator(tmp_path: Path, edges: str) -> None:
    """The first prunes to input and output alone: a stem, projections and a head."""
    space = NasBench101(
        NasBench101.Options.model_validate(
            {"network": True, "stem_channels": 8, "stacks": 2, "cells": 1, "batch_norm_momentum": 0.1}
        )
    )
    genotype = {"matrix": matrix_of(7, edges), "ops": [INPUT, *["conv3x3-bn-relu"] * 5, OUTPUT]}
    assert space.contains(genotype)
    settings = make_job(training={"epochs": 4})
    candidate = make_trial(settings, space.to_descriptor(genotype))
    trained = make_evaluator(settings, tmp_path)
    assert trained.examine(space.to_descriptor(genotype), settings.full_fidelity).n_parameters > 500
    outcome = trained.evaluate(candidate, gang=Alone(), control=Free(), keep_above=None)
    assert outcome.fitness is not None and outcome.fitness > 0.4


def by_hand(*operations: str) -> NeuralDescriptor:
    d = NeuralDescriptor()
    d.add_layer("input", None, "in")
    for number, operation in enumerate(operations):
        d.add_layer_sequential(operation, None, f"layer_{number}")
    d.add_layer_sequential("output", None, "out")
    return d


def test_descriptors_are_looked_up_from_scripts(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORD_HPC_NASBENCH101", str(small))
    made = BenchmarkEvaluator()
    operations = made.get_available_ops()
    assert operations == ["conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3"]
    d = by_hand(operations[0])
    assert made.has_been_evaluated(d)
    mean = fmean([0.5, 0.625, 0.875])
    assert made.descriptor_evaluate(d) == pytest.approx((mean, 1000 + 8 * mean))
    assert made.descriptor_evaluate(d, acc="test_accuracy")[0] == pytest.approx(mean - 0.01)
    assert made.descriptor_evaluate(d, "train_accuracy")[0] == pytest.approx(mean + 0.05)
    assert BenchmarkEvaluator(small, epochs=4).descriptor_evaluate(d) == (0.25, 40.0)
    sampled = {BenchmarkEvaluator(small, repeat="sampled", seed=s).descriptor_evaluate(d)[0] for s in range(20)}
    assert sampled == {0.5, 0.625, 0.875}


def test_what_scripts_cannot_look_up(small: Path) -> None:
    made = BenchmarkEvaluator(small)
    for d in (by_hand(), by_hand("conv7x7"), by_hand("maxpool3x3")):
        assert not made.has_been_evaluated(d)
    with pytest.raises(Infeasible, match="is not among the 2 cells of the table"):
        made.descriptor_evaluate(by_hand("maxpool3x3"))
    with pytest.raises(Infeasible, match=r"layer 'layer_0' \(conv7x7\) is no vertex of NAS-Bench-101"):
        made.descriptor_evaluate(by_hand("conv7x7"))
    with pytest.raises(
        ValueError, match="acc 'accuracy' is not in the table; set one of train_accuracy, validation_acc"
    ):
        made.descriptor_evaluate(by_hand("conv3x3-bn-relu"), acc="accuracy")
    with pytest.raises(BadInput, match=r"epochs 36 are no budget of .*small\.tfrecord; set one of 4, 108"):
        BenchmarkEvaluator(small, epochs=36)
    pooled = by_hand("maxpool3x3")
    pooled.connect_layers("in", "out")
    short = BenchmarkEvaluator(small, epochs=4)
    assert not short.has_been_evaluated(pooled) and made.has_been_evaluated(pooled)
    with pytest.raises(Infeasible, match=f"cell {POOLED.module_hash} has no training of 4 epochs in the table"):
        short.descriptor_evaluate(pooled)


def test_needs_no_torch() -> None:
    code = "import sys, nord_hpc.evaluators.nasbench101, nord_hpc.spaces.nasbench101; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"
