"""Trials that go on from another one's trained state, and trials that were interrupted between two epochs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import candidates
import pytest

from nord_hpc.errors import SearchStopped
from nord_hpc.evaluators import training_evaluator
from nord_hpc.job import Job
from nord_hpc.trial import Fidelity, Outcome, Trial

ALONE, FREE = candidates.Alone(), candidates.Free()


class StopsAt:
    """A control that interrupts the training at its n-th look."""

    def __init__(self, n: int) -> None:
        self.left = n

    def check(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise SearchStopped("enough")


def parts(*, epochs: int = 3) -> tuple[Job, Trial, Trial]:
    """The job; its trial of one epoch, which keeps its state; and the one that goes on from it."""
    job = candidates.make_job(training={"epochs": epochs}, evaluator={"digests": True})
    whole = candidates.make_trial(job, candidates.descriptor(), number=4)
    low = replace(whole, number=0, fidelity=Fidelity(1), keeps_state=True)
    return job, low, replace(whole, continues=0)


def evaluate(job: Job, trial: Trial, folder: Path, control: object = FREE) -> Outcome:
    evaluator = candidates.make_evaluator(job, folder)
    return evaluator.evaluate(trial, gang=ALONE, control=control, keep_above=math.inf)  # type: ignore[arg-type]


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("state-*"))


def test_going_on_gives_what_a_whole_training_gives(tmp_path: Path) -> None:
    job, low, high = parts()
    first = evaluate(job, low, tmp_path)
    assert states(tmp_path) == ["state-0.safetensors"]
    continued = evaluate(job, high, tmp_path)
    assert states(tmp_path) == []
    whole = evaluate(job, replace(high, continues=None), tmp_path)
    assert continued.metrics == whole.metrics
    assert continued.metrics["curve"][0] == first.metrics["curve"][0]
    assert [point["epoch"] for point in continued.metrics["curve"]] == [1, 2, 3]


def test_it_trains_only_the_further_epochs(tmp_path: Path) -> None:
    job, low, high = parts()
    evaluate(job, low, tmp_path)
    counted, whole = StopsAt(0), StopsAt(0)
    evaluate(job, high, tmp_path, counted)
    evaluate(job, replace(high, continues=None), tmp_path, whole)
    assert -counted.left == pytest.approx(-whole.left * 2 / 3, rel=0.05)


def test_a_state_that_is_missing_is_trained_again_to_the_same(tmp_path: Path) -> None:
    job, low, high = parts()
    evaluate(job, low, tmp_path)
    (tmp_path / "state-0.safetensors").unlink()
    alone = evaluate(job, high, tmp_path)
    assert alone.metrics == evaluate(job, replace(high, continues=None), tmp_path).metrics


def test_an_interrupted_trial_goes_on_from_its_last_epoch(tmp_path: Path) -> None:
    job, _, high = parts()
    long = replace(high, continues=None, cost=int(3 * training_evaluator.CHECKPOINT_SECONDS * 1e6))
    looks = StopsAt(0)
    whole = evaluate(job, long, tmp_path, looks)
    assert states(tmp_path) == []
    with pytest.raises(SearchStopped):
        evaluate(job, long, tmp_path, StopsAt(-looks.left * 2 // 3 + 3))
    assert states(tmp_path) == ["state-4.safetensors"]
    rest = StopsAt(0)
    assert evaluate(job, long, tmp_path, rest).metrics == whole.metrics
    assert -rest.left < -looks.left * 0.5
    assert states(tmp_path) == []


def test_short_trials_leave_no_states(tmp_path: Path) -> None:
    job, _, high = parts()
    with pytest.raises(SearchStopped):
        evaluate(job, replace(high, continues=None), tmp_path, StopsAt(30))
    assert states(tmp_path) == []


def test_settings_of_a_candidate_change_its_training(tmp_path: Path) -> None:
    job, _, high = parts()
    plain = replace(high, continues=None)
    slow = evaluate(job, replace(plain, settings={"training.optimizer.lr": 1e-6}), tmp_path)
    same = evaluate(job, replace(plain, settings={"training.optimizer.lr": 0.01}), tmp_path)
    assert same.metrics == evaluate(job, plain, tmp_path).metrics
    assert slow.fitness is not None and same.fitness is not None and slow.fitness < same.fitness
    large = evaluate(job, replace(plain, settings={"training.batch_size": 64}), tmp_path)
    assert large.metrics["steps"] == same.metrics["steps"] // 2
