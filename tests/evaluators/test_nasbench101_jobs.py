"""The jobs of NAS-Bench-101, run as a person would run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from nasbench101_example import BEST_HASH, CHAIN, FOUR, ROOT, needs_files, payload, write_records

JOBS = ROOT / "jobs"


def run(*command: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "NORD_HPC_NASBENCH101"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1", "NORD_HPC_CACHE": str(cwd / "cache"), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_files
def test_the_search_finds_the_best_cell(tmp_path: Path) -> None:
    job = str(JOBS / "nasbench101_evolution.yaml")
    settings = (
        "seed=1",
        "evaluator.repeat=mean",
        "space.vertices=4",
        f"evaluator.path={FOUR}",
        "strategy.population=50",
    )
    options = [text for setting in settings for text in ("--set", setting)]
    done = run("-m", "nord_hpc", "run", job, *options, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "500 completed, 0 failed, 0 infeasible" in done.stdout
    assert "validation accuracy 0.9425" in done.stdout
    assert "test accuracy 0.9335" in done.stdout
    listed = run("-m", "nord_hpc", "trials", "run", "--json", cwd=tmp_path)
    trials = json.loads(listed.stdout)
    assert len(trials) == 500
    best = max(trials, key=lambda trial: trial["fitness"])
    assert best["metrics"]["module_hash"] == BEST_HASH
    assert round(best["metrics"]["training_seconds"]) == 5390


@needs_files
def test_cells_outside_the_table_are_infeasible(tmp_path: Path) -> None:
    job = str(JOBS / "nasbench101_evolution.yaml")
    options = ["--set", "budget.trials=20", "--set", f"evaluator.path={FOUR}", "--out", "run"]
    done = run("-m", "nord_hpc", "run", job, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trials = json.loads(run("-m", "nord_hpc", "trials", "run", "--json", cwd=tmp_path).stdout)
    refused = [trial for trial in trials if trial["state"] == "infeasible"]
    assert refused
    assert all("is not among the 91 cells of the table" in trial["reason"] for trial in refused)
    assert len(trials) - len(refused) == 20


def test_a_search_without_a_record_file_says_what_to_set(tmp_path: Path) -> None:
    done = run("-m", "nord_hpc", "run", str(JOBS / "nasbench101_evolution.yaml"), "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "set path (evaluator.path in a job) or NORD_HPC_NASBENCH101 to nasbench_full.tfrecord" in done.stderr


@needs_files
def test_the_script_looks_descriptors_up(tmp_path: Path) -> None:
    done = run(str(JOBS / "nord_nasbench101.py"), cwd=tmp_path, NORD_HPC_NASBENCH101=str(FOUR))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "available operations: conv3x3-bn-relu, conv1x1-bn-relu, maxpool3x3"
    assert lines[1] == "conv3x3-bn-relu -> conv3x3-bn-relu: validation 0.9318, test 0.9253, trained in 1853 s"
    assert len(lines) == 11
    assert lines[-1] == "best: conv3x3-bn-relu -> conv3x3-bn-relu"


def test_the_script_says_what_is_missing(tmp_path: Path) -> None:
    done = run(str(JOBS / "nord_nasbench101.py"), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("NAS-Bench-101 needs its record file: set path")
    file = write_records(tmp_path / "records", payload(CHAIN))
    done = run(str(JOBS / "nord_nasbench101.py"), str(file), cwd=tmp_path)
    assert done.returncode == 0
    assert "maxpool3x3 -> maxpool3x3: not in the table" in done.stdout
