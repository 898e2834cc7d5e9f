"""The evaluator that trains nothing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from nord_hpc import job
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, SearchStopped, TrialFailed
from nord_hpc.evaluators.synthetic import SyntheticEvaluator
from nord_hpc.trial import Fidelity, Trial, TrialState

EPOCH = Fidelity(epochs=1)


class Alone:
    rank, size = 0, 1

    def connect(self) -> Any:
        raise AssertionError("a synthetic evaluation needs no partners")


class Free:
    def check(self) -> None:
        pass


def evaluator(tmp_path: Path, **options: Any) -> SyntheticEvaluator:
    made = job.from_mapping(
        {
            "name": "null",
            "space": {"name": "conv_graph"},
            "strategy": {"name": "random_search"},
            "evaluator": {"name": "synthetic", **options},
            "budget": {"trials": 1},
        },
        folder=tmp_path,
    )
    cls, checked = job.options_of("evaluator", made.evaluator, folder=tmp_path)
    result: SyntheticEvaluator = cls(checked, job=made, folder=tmp_path, weights_folder=tmp_path)
    return result


def descriptor(channels: int) -> NeuralDescriptor:
    result = NeuralDescriptor()
    result.add_layer("Conv2d", {"out_channels": channels, "kernel_size": 3})
    return result


def trial(number: int, *, seed: int = 0) -> Trial:
    net = descriptor(number + 1)
    return Trial(number, None, (), net.to_json(), net.canonical_hash(), EPOCH, seed=seed)


def evaluate(made: SyntheticEvaluator, candidate: Trial, control: Any = None) -> Any:
    return made.evaluate(candidate, gang=Alone(), control=control or Free(), keep_above=math.inf)


def test_fitness_follows_from_network_and_seed(tmp_path: Path) -> None:
    made = evaluator(tmp_path)
    values = [evaluate(made, trial(number)).fitness for number in range(200)]
    assert values == [evaluate(evaluator(tmp_path, seconds=1e-6), trial(number)).fitness for number in range(200)]
    assert all(0 <= value < 1 for value in values)
    assert len(set(values)) == 200
    assert fmean(values) == pytest.approx(0.5, abs=0.1)
    assert evaluate(made, trial(0, seed=1)).fitness != values[0]
    assert evaluate(made, trial(0)).state is TrialState.COMPLETED
    assert made.test(trial(0), control=Free()).keys() == {"accuracy"}


@pytest.mark.parametrize(("seconds", "mean"), [(0.0, 1000), (2.0, 2_000_000)])
def test_costs_differ_around_their_mean(tmp_path: Path, seconds: float, mean: int) -> None:
    made = evaluator(tmp_path, seconds=seconds)
    costs = [made.examine(descriptor(n), EPOCH).cost for n in range(1, 1500)]
    assert fmean(costs) == pytest.approx(mean, rel=0.1)
    assert len(set(costs)) > 700
    assert made.examine(descriptor(1), Fidelity(epochs=4, fraction=0.5)).cost == pytest.approx(2 * costs[0], abs=2)
    constant = evaluator(tmp_path, seconds=seconds, distribution="constant")
    assert {constant.examine(descriptor(n), EPOCH).cost for n in range(1, 20)} == {mean}


@pytest.mark.timing
def test_time_is_taken_and_can_be_stopped(tmp_path: Path) -> None:
    made = evaluator(tmp_path, seconds=0.1, distribution="constant", prediction_error=0)
    assert 0.1 <= evaluate(made, trial(0)).seconds < 0.5

    class Stop:
        until = time.perf_counter() + 0.2

        def check(self) -> None:
            if time.perf_counter() > self.until:
                raise SearchStopped("enough")

    began = time.perf_counter()
    with pytest.raises(SearchStopped):
        evaluate(evaluator(tmp_path, seconds=30, distribution="constant"), trial(0), Stop())
    assert time.perf_counter() - began < 5


def test_jitter_changes_no_result(tmp_path: Path) -> None:
    jittered = evaluate(evaluator(tmp_path, sleep_jitter_seconds=0.01), trial(3))
    assert jittered.fitness == evaluate(evaluator(tmp_path), trial(3)).fitness


def test_failures(tmp_path: Path) -> None:
    made = evaluator(tmp_path, fail_every=3, nan_every=4)
    seen = []
    for number in range(12):
        try:
            evaluate(made, trial(number))
            seen.append("completed")
        except TrialFailed as error:
            assert str(error) == f"synthetic fitness of trial {number} is not finite"
            seen.append(error.kind)
        except RuntimeError as error:
            assert str(error) == f"synthetic failure of trial {number}"
            seen.append("exception")
    period = ["completed", "completed", "exception", "not_finite", "completed", "exception"]
    rest = ["completed", "not_finite", "exception", "completed", "completed", "exception"]
    assert seen == period + rest


def test_log_has_a_line_for_each_evaluation(tmp_path: Path) -> None:
    made = evaluator(tmp_path, log="evaluations.log")
    for number in (4, 2, 4):
        evaluate(made, trial(number))
    lines = [line.split() for line in (tmp_path / "evaluations.log").read_text().splitlines()]
    assert [line[0] for line in lines] == ["4", "2", "4"]
    assert {line[1] for line in lines} == {str(os.getpid())}
    assert float(lines[0][2]) <= float(lines[2][2]) <= time.time()


@pytest.mark.timing
def test_null_evaluation_is_cheap(tmp_path: Path) -> None:
    made, candidate = evaluator(tmp_path), trial(0)
    best = min(_microseconds(made, candidate) for _ in range(20))
    assert best < 20


def _microseconds(made: SyntheticEvaluator, candidate: Trial) -> float:
    began = time.perf_counter()
    for _ in range(200):
        evaluate(made, candidate)
    return (time.perf_counter() - began) * 1e6 / 200


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"evaluator\.sigm: is not a known key"):
        evaluator(tmp_path, sigm=1)
    with pytest.raises(BadInput, match=r"evaluator\.seconds: -1 is wrong; set a number of at least 0"):
        evaluator(tmp_path, seconds=-1)


def test_needs_no_torch() -> None:
    code = "import sys, nord_hpc.evaluators.synthetic; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"
