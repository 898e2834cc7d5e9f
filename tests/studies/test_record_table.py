"""Finished runs as a table: what is taken, what is refused, and a search in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nord_hpc import job as jobs
from nord_hpc.errors import BadInput
from nord_hpc.evaluators.recorded_table import read_table
from nord_hpc.store.run_folder import RunFolder
from nord_hpc.studies.record_table import record
from nord_hpc.studies.searches import run_in_folder, run_simulated

BASE: dict[str, Any] = {
    "name": "toy",
    "space": {"name": "conv_graph", "max_layers": 3},
    "strategy": {"name": "random_search"},
    "evaluator": {"name": "synthetic", "fail_every": 6},
    "budget": {"trials": 15},
}


def run(folder: Path, **changes: Any) -> RunFolder:
    return run_in_folder(jobs.from_mapping({**BASE, **changes}, folder=folder.parent), folder, ranks=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    base = tmp_path_factory.mktemp("runs")
    return [run(base / "a"), run(base / "b", seed=1, training={"epochs": 2})]


def test_every_completed_trial_is_recorded(tmp_path: Path, runs: list[RunFolder]) -> None:
    made = record([folder.path for folder in runs], tmp_path / "t.h5")
    assert read_table(tmp_path / "t.h5") == made
    entries = [entry for folder in runs for _, entry in sorted(folder.history().entries.items())]
    completed = [e for e in entries if e.outcome is not None and e.outcome.fitness is not None]
    assert len(entries) == 30 and len(completed) == len(made.recordings) == 26
    for recording, entry in zip(made.recordings, completed, strict=True):
        assert entry.outcome is not None
        assert recording.fitness == entry.outcome.fitness and recording.seconds == entry.outcome.seconds
        assert (recording.descriptor_hash, recording.seed) == (entry.trial.descriptor_hash, entry.trial.seed)
        assert recording.epochs == entry.trial.fidelity.epochs
        assert made.networks[recording.descriptor_hash] is not None
    assert {recording.epochs for recording in made.recordings} == {1, 2}
    assert sum(recording.test is not None for recording in made.recordings) == 2  # the best of each run
    assert made.facts.sources == tuple(str(folder.path.resolve()) for folder in runs)
    error = made.facts.error
    assert error is not None and error["networks"] == len(made.networks) and error["mean_absolute"] > 0.1  # it is noise


def test_runs_that_differ_are_refused(tmp_path: Path, runs: list[RunFolder]) -> None:
    other = run(tmp_path / "other", budget={"trials": 1}, evaluator={"name": "synthetic", "sigma": 0.5})
    with pytest.raises(
        BadInput, match=r"other: its trainings are not those of .*a: evaluator\.fail_every, evaluator\.s"
    ):
        record([runs[0].path, other.path], tmp_path / "t.h5")
    with pytest.raises(BadInput, match="there is no such run folder"):
        record([tmp_path / "nowhere"], tmp_path / "t.h5")
    nothing = RunFolder.create(tmp_path / "nothing", jobs.from_mapping(BASE, folder=tmp_path))
    with pytest.raises(BadInput, match="no trial has completed"):
        record([nothing.path], tmp_path / "t.h5")
    assert not (tmp_path / "t.h5").exists()


def test_a_search_in_the_table(tmp_path: Path, runs: list[RunFolder]) -> None:
    """Random search with the run's own seed meets the run's own networks; others are predicted."""
    record([runs[0].path], tmp_path / "t.h5")
    data = {**BASE, "evaluator": {"name": "table", "path": str(tmp_path / "t.h5")}}
    again = run_simulated(data, tmp_path)
    history = runs[0].history()
    best = history.best(maximize=True)
    assert best is not None and best.outcome is not None and history.test is not None
    assert again.fitness is not None and again.fitness >= best.outcome.fitness
    others = run_simulated({**data, "seed": 5}, tmp_path)
    assert others.n_trials == 15 and others.fitness is not None and others.fitness <= best.outcome.fitness


def test_the_command(tmp_path: Path, runs: list[RunFolder]) -> None:
    command = [sys.executable, "-m", "nord_hpc", "table", str(runs[0].path), "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "t.h5")], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    table = read_table(tmp_path / "t.h5")
    assert f"{len(table.recordings)} trainings of {len(table.networks)} networks" in done.stdout
    assert table.facts.error is not None
    assert f"mean absolute error of {table.facts.error['mean_absolute']:.4f}" in done.stdout
    wrong = subprocess.run([*command, str(tmp_path / "t")], capture_output=True, text=True, timeout=60, env=environment)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "set a name that ends in .h5" in wrong.stderr
    assert json.loads(json.dumps(table.facts.job))["objective"]["metric"] == "accuracy"
