"""Recurrent cells trained on a text by the evaluator that trains everything: gangs, refusals, the job on the plays."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import candidates
import pytest
import text_candidates

from nord_hpc.data_parallel import available
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.evaluators.training_evaluator import TrainingEvaluator
from nord_hpc.job import Job
from nord_hpc.trial import Fidelity, Outcome, Trial

ROOT = Path(__file__).parents[2]
PLAYS = ROOT.parent / "shared" / "data" / "text_tinyshakespeare" / "input.txt.gz"
TRIGRAM_BITS = 3.04
"""Bits per character of a trigram model on the plays' test part; computed in the tests of the data set."""


def prepared(folder: Path, **sections: Any) -> tuple[Job, TrainingEvaluator]:
    job = text_candidates.make_text_job(folder, **sections)
    return job, candidates.make_evaluator(job, folder / "weights")


def evaluated(evaluator: TrainingEvaluator, trial: Trial) -> Outcome:
    return evaluator.evaluate(trial, gang=candidates.Alone(), control=candidates.Free(), keep_above=None)


def test_cells_are_trained_scored_and_tested(tmp_path: Path) -> None:
    job, evaluator = prepared(tmp_path, training={"epochs": 8, "optimizer": {"name": "adam", "lr": 0.03}})
    n, vocabulary = len(text_candidates.TEXT), len(set(text_candidates.TEXT))
    n_train = (int(0.9 * n) - 1) // 8
    assert evaluator.describe().startswith(f"text: {n_train} training, ")
    assert "test windows of 8 tokens" in evaluator.describe()
    net = text_candidates.cells()
    examined = evaluator.examine(net, Fidelity(8))
    cell = 8 * 8 * (8 + 8)
    assert examined.n_parameters == vocabulary * 8 + 2 * (cell + 64) + 8 * vocabulary + vocabulary
    assert examined.multiply_adds == 8 * (2 * cell + 8 * vocabulary)
    trial = candidates.make_trial(job, net)
    outcome = evaluated(evaluator, trial)
    curve = [point["bits_per_character"] for point in outcome.metrics["curve"]]
    assert outcome.fitness == curve[-1] == outcome.metrics["bits_per_character"]
    assert outcome.metrics["perplexity"] == pytest.approx(2 ** curve[-1])
    assert outcome.metrics["cross_entropy"] == pytest.approx(curve[-1] * math.log(2))
    assert curve[-1] < curve[0] < math.log2(vocabulary) and curve[-1] < 3.2
    assert outcome.metrics["n_parameters"] == examined.n_parameters
    assert outcome.metrics["samples_used"] == n_train - n_train % 16
    tested = evaluator.test(trial, control=candidates.Free())
    assert tested["bits_per_character"] == pytest.approx(curve[-1], abs=0.5) and not tested["retrained"]
    assert tested["n_samples"] == math.ceil((n - int(0.95 * n) - 1) / 8)
    again = evaluated(evaluator, trial)
    assert again.metrics == outcome.metrics


def test_fidelity_is_minded(tmp_path: Path) -> None:
    job, evaluator = prepared(tmp_path)
    trial = candidates.make_trial(job, text_candidates.cells())
    outcome = evaluated(evaluator, replace(trial, fidelity=Fidelity(epochs=1, fraction=0.25)))
    n_train = evaluator.dataset.info.n_train
    assert outcome.metrics["samples_used"] == n_train // 4 - n_train // 4 % 16
    assert len(outcome.metrics["curve"]) == 1
    untrained = evaluated(evaluator, replace(trial, fidelity=Fidelity(epochs=0)))
    assert untrained.fitness == pytest.approx(math.log2(evaluator.dataset.info.n_outputs), rel=0.1)


def test_weights_may_be_tied(tmp_path: Path) -> None:
    job, evaluator = prepared(tmp_path, evaluator={"head": {"tied": True}})
    net = text_candidates.cells(layers=1)
    examined = evaluator.examine(net, Fidelity(1))
    outcome = evaluated(evaluator, candidates.make_trial(job, net))
    vocabulary = evaluator.dataset.info.n_outputs
    assert outcome.metrics["n_parameters"] == examined.n_parameters == 9 * vocabulary + 8 * 8 * 16 + 64
    assert outcome.fitness is not None and outcome.fitness < math.log2(vocabulary)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    _, evaluator = prepared(tmp_path)
    images = candidates.descriptor()
    with pytest.raises(Infeasible, match=r"layer 'first' \(Conv2d\) works on 2-D maps, but its input is a map of"):
        evaluator.examine(images, Fidelity(1))
    sequence = NeuralDescriptor()
    sequence.add_layer("Conv1d", {"out_channels": 8, "kernel_size": 1}, "conv")
    with pytest.raises(Infeasible) as caught:
        evaluator.examine(sequence, Fidelity(1))
    assert caught.value.reason == "layer 'conv' (Conv1d) gets tokens: a network for text begins with an Embedding"
    _, wrong = prepared(tmp_path, objective={"metric": "macro_f1", "direction": "maximize"})
    with pytest.raises(BadInput, match=r"macro_f1 is not for language_modelling data; set one of bits_per_character"):
        wrong.examine(text_candidates.cells(), Fidelity(1))
    digits = candidates.make_evaluator(candidates.make_job(evaluator={"head": {"tied": True}}), tmp_path)
    with pytest.raises(BadInput, match=r"evaluator\.head\.tied: there is no embedding but for text; set it to false"):
        digits.examine(images, Fidelity(1))


@pytest.mark.mpi
@pytest.mark.parametrize("backend", ["horovod", "torch_ddp"])
def test_fitness_does_not_depend_on_the_gang(backend: str, run_ranks: Callable[..., list[dict[str, Any]]]) -> None:
    reason = available(backend)
    if reason is not None:
        pytest.skip(reason)
    seen = run_ranks(Path(__file__).with_name("gang_text_script.py"), backend, n=2)
    alone = seen[0]["1"]
    assert len(alone["metrics"]["curve"]) == 2
    assert all(found[size] == alone for found in seen for size in ("1", "2"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_found_cell_is_better_than_a_trigram_model(tmp_path: Path) -> None:
    """The job as a person would run it, on two workers."""
    if not PLAYS.is_file():
        pytest.skip(f"there is no {PLAYS}")
    command = [sys.executable, "-m", "nord_hpc", "run", str(ROOT / "jobs" / "recurrent_text.yaml"), "-n", "3"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "NORD_HPC_TEXT": str(PLAYS)},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    match = re.search(r"^test bits_per_character (\d\.\d+)$", done.stdout, re.MULTILINE)
    assert match is not None, done.stdout
    assert float(match[1]) < TRIGRAM_BITS
