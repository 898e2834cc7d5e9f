"""Branches that differ and poolings that leave nothing: fitted or clamped by rule, or refused; the search goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nord_hpc.builder import plan
from nord_hpc.builder.network import build
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.store.run_folder import RunFolder

# The space has one network for each genotype, and is a file of its own, as a user's would be.
SPACE = '''
from pydantic import BaseModel
from nord_hpc.descriptor import NeuralDescriptor


def conv(channels, stride=1):
    return {"out_channels": channels, "kernel_size": 3, "padding": 1, "stride": stride}


def branches():
    """16 and 32 channels are added; then 16 channels with stride 1 and with stride 2 are concatenated."""
    network = NeuralDescriptor()
    network.add_layer("Identity", None, "in")
    for name, channels, stride, source in [
        ("narrow", 16, 1, "in"), ("wide", 32, 1, "in"), ("fine", 16, 1, "sum"), ("coarse", 16, 2, "sum")
    ]:
        if name == "fine":
            network.add_layer("ReLU", None, "sum")
            network.connect_layers("narrow", "sum")
            network.connect_layers("wide", "sum")
        network.add_layer("Conv2d", conv(channels, stride), name)
        network.connect_layers(source, name)
    network.add_layer("ReLU", None, "both", join="concat")
    network.connect_layers("fine", "both")
    network.connect_layers("coarse", "both")
    return network


def five_pools():
    network = NeuralDescriptor()
    for number in range(1, 6):
        network.add_layer_sequential("MaxPool2d", {"kernel_size": 2, "stride": 2}, f"pool{number}")
    return network


def refused():
    network = NeuralDescriptor()
    network.add_layer_sequential("Conv2d", conv(4), "flat")
    network.add_layer_sequential("Conv1d", {"out_channels": 4, "kernel_size": 3}, "line")
    return network


NETWORKS = [refused, branches, five_pools]


class Odd:
    class Options(BaseModel):
        pass

    def __init__(self, options):
        self.given = 0

    def sample(self, rng):
        self.given += 1
        return (self.given - 1) % len(NETWORKS)

    def mutate(self, genotype, rng):
        return (genotype + 1) % len(NETWORKS)

    def crossover(self, first, second, rng):
        return first

    def contains(self, genotype):
        return genotype in range(len(NETWORKS))

    def to_descriptor(self, genotype):
        return NETWORKS[genotype]()
'''


@pytest.fixture(scope="module")
def odd() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(SPACE, names)
    return names


def test_channels_are_projected_and_sizes_pooled(odd: dict[str, Any]) -> None:
    """The rule for adding: 1x1 convolutions to the most channels. For both: the smallest size, by average pooling."""
    planned = plan(odd["branches"](), input_shape=(3, 32, 32), n_outputs=10)
    steps = {step.layer: step for step in planned.steps}
    assert {(adapter.project, adapter.pool_to) for adapter in steps["sum"].inputs} == {(None, None), ((16, 32), None)}
    assert {(adapter.project, adapter.pool_to) for adapter in steps["both"].inputs} == {(None, None), (None, (16, 16))}
    assert steps["sum"].output_shape == (32, 32, 32) and steps["both"].output_shape == (32, 16, 16)
    outputs = build(planned, seed=1)(torch.randn(2, 3, 32, 32))
    assert outputs.shape == (2, 10) and torch.isfinite(outputs).all()


def test_the_fifth_pooling_is_clamped_and_named(odd: dict[str, Any]) -> None:
    planned = plan(odd["five_pools"](), input_shape=(1, 28, 28), n_outputs=10)
    assert [step.output_shape for step in planned.steps[:5]] == [(1, n, n) for n in (14, 7, 3, 1, 1)]
    (note,) = planned.notes
    assert note == "layer 'pool5' (MaxPool2d): kernel 2x2 clamped to 1x1, as its input is a map of 1x1x1"
    assert build(planned, seed=1)(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_what_fits_by_no_rule_is_refused_with_layer_and_shape(odd: dict[str, Any]) -> None:
    with pytest.raises(Infeasible) as refused:
        plan(odd["refused"](), input_shape=(1, 28, 28), n_outputs=10)
    assert refused.value.reason == "layer 'line' (Conv1d) works on 1-D maps, but its input is a map of 4x28x28"
    assert refused.value.layer == "line"


def test_a_map_is_averaged_to_a_vector_where_it_meets_one() -> None:
    network = NeuralDescriptor()
    network.add_layer("Identity", None, "in")
    network.add_layer("Flatten", None, "vector")
    network.add_layer("Conv2d", {"out_channels": 4, "kernel_size": 3}, "map")
    network.add_layer("Identity", None, "sum")
    for source, target in [("in", "vector"), ("in", "map"), ("vector", "sum"), ("map", "sum")]:
        network.connect_layers(source, target)
    steps = {step.layer: step for step in plan(network, input_shape=(1, 6, 6), n_outputs=3).steps}
    assert steps["sum"].output_shape == (36,)


def test_each_counts_as_one_trial_and_the_search_goes_on(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(SPACE)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(60, 1, 28, 28)).astype(np.float32), y=np.arange(60) % 3)
    job = {
        "name": "odd",
        "dataset": {"name": "arrays", "path": "d.npz"},
        "space": {"name": "odd.py:Odd"},
        "strategy": {"name": "random_search"},
        "training": {"epochs": 1, "batch_size": 8},
        "budget": {"trials": 4},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    command = [sys.executable, "-m", "nord_hpc", "run", "job.yaml", "--out", "run"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = [entry.outcome for entry in RunFolder(tmp_path / "run").history().entries.values() if entry.outcome]
    states = [outcome.state.value for outcome in outcomes]
    assert states[:6] == ["infeasible", "completed", "completed"] * 2 and states.count("completed") == 4
    assert all(0 <= (outcome.fitness or 0) <= 1 for outcome in outcomes[1:3])
    assert "layer 'line' (Conv1d) works on 1-D maps, but its input is a map of 4x28x28" in str(outcomes[0])
