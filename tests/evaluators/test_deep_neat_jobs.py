"""The jobs of DeepNEAT, run as a person would run them, on 2,000 images of CIFAR-10."""

from __future__ import annotations

import json
import lzma
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.store.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "cifar10" / "data_batch_1_first2000.bin.xz"

Run = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for NORD_HPC_DATA."""
    if not SHARED.is_file():
        pytest.skip(f"there is no {SHARED}")
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar10").mkdir()
    (folder / "cifar10" / "data_batch_1.bin").write_bytes(lzma.decompress(SHARED.read_bytes()))
    return folder


def run(*command: str, images: Path, cwd: Path) -> str:
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "NORD_HPC_DATA": str(images), "NORD_HPC_CACHE": str(images / "cache"),
    }  # fmt: skip
    done: Run = subprocess.run(
        [sys.executable, *command], env=environment, cwd=cwd, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_script_evolves_genomes(images: Path, tmp_path: Path) -> None:
    small = ["--generations", "3", "--population", "3", "--channels", "4", "8", "--data-percentage", "0.2"]
    script = str(ROOT / "jobs" / "nord_deepneat.py")
    lines = run(script, *small, images=images, cwd=tmp_path).splitlines()
    found = [re.fullmatch(r"generation (\d) genome (\d): (\d+) nodes, (0\.\d{4})", line) for line in lines[:9]]
    assert [match and match.group(1, 2) for match in found] == [(str(g), str(k)) for g in range(3) for k in range(3)]
    fitness = [float(match[4]) for match in found if match]
    assert lines[9] == f"best validation accuracy: {max(fitness):.4f}" and len(set(fitness)) > 1
    assert 0.05 < max(fitness) < 0.6  # ten classes, hardly trained
    network = NeuralDescriptor.from_repr("\n".join(lines[10:]))
    assert (network.first_layer, network.last_layer) == ("-2out", "-1in")
    assert run(script, *small, images=images, cwd=tmp_path).splitlines() == lines


def test_the_job_searches_the_same_space(images: Path, tmp_path: Path) -> None:
    changes = {
        "dataset.path": str(images / "cifar10"),
        "dataset.allow_partial": "true",
        "dataset.fraction": "0.2",
        "space.channels": "[4, 8]",
        "strategy.population": "3",
        "strategy.species": "2",
        "training.epochs": "1",
        "training.batch_size": "32",
        "budget.trials": "5",
        "resources.shards": "1",
        "resources.gang": "1",
    }
    options = [argument for key, value in changes.items() for argument in ("--set", f"{key}={value}")]
    job = str(ROOT / "jobs" / "deep_neat_cifar10.yaml")
    run("-m", "nord_hpc", "run", job, "--out", str(tmp_path / "run"), *options, images=images, cwd=tmp_path)
    entries = RunFolder(tmp_path / "run").history().entries.values()
    states = [entry.outcome.state.value for entry in entries if entry.outcome is not None]
    assert states.count("completed") == 5
    kinds = {layer["kind"] for entry in entries for layer in entry.trial.descriptor["layers"]}
    assert {"Conv2d", "ReLU6", "Identity"} <= kinds, json.dumps(sorted(kinds))
