"""Data without maps: vectors [N, F] are searched with dense networks; what is known of the data stays with the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mpi.commands import nord, trials, write_job
from torch import nn, optim

from nord_hpc.errors import BadInput
from nord_hpc.neural_nets import LocalEvaluator, NeuralDescriptor
from nord_hpc.scripting.configs import Configs
from nord_hpc.scripting.search import Search
from nord_hpc.store.run_folder import RunFolder

SPACE = """
from pydantic import BaseModel
from nord_hpc.descriptor import NeuralDescriptor


class Dense:
    class Options(BaseModel):
        widths: tuple[int, ...] = (8, 16, 32)

    def __init__(self, options):
        self.widths = options.widths

    def sample(self, rng):
        return [int(rng.choice(self.widths)) for _ in range(2)]

    def mutate(self, genotype, rng):
        return [int(rng.choice(self.widths)), genotype[1]]

    def crossover(self, first, second, rng):
        return [first[0], second[1]]

    def contains(self, genotype):
        return all(width in self.widths for width in genotype)

    def to_descriptor(self, genotype):
        network = NeuralDescriptor()
        for width in genotype:
            network.add_layer_sequential("Linear", {"out_features": width})
            network.add_layer_sequential("BatchNorm1d")
            network.add_layer_sequential("ReLU")
        return network
"""

LABELS = np.array([1, 2, 4, 7, 12, 13])


def vectors(n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Six clouds in five dimensions of different scale; labels with gaps."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 5)) * 3
    which = np.arange(n) % 6
    return ((centres[which] + rng.normal(size=(n, 5))) * (1, 10, 100, 0.1, 1)).astype(np.float32), LABELS[which]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    x, y = vectors()
    x[[5, 17, 41], 0] = np.nan
    np.savez(tmp_path / "d.npz", x=x, y=y)
    (tmp_path / "dense.py").write_text(SPACE)
    return write_job(
        tmp_path / "job.yaml",
        {
            "name": "vectors",
            "dataset": {"name": "arrays", "path": "d.npz"},
            "space": {"name": "dense.py:Dense"},
            "strategy": {"name": "random_search"},
            "training": {"epochs": 8, "batch_size": 32, "optimizer": {"name": "adam", "lr": 0.01}},
            "budget": {"trials": 2},
        },
    )


def test_dense_networks_are_searched_and_the_labels_are_kept(job: Path, tmp_path: Path) -> None:
    nord("run", job, "--out", "run", cwd=tmp_path)
    rows = trials(tmp_path / "run")
    assert [row["state"] for row in rows] == ["completed"] * 2 and min(row["fitness"] for row in rows) > 0.8
    first, second = rows[0]["genotype"]
    counted = 5 * first + first + 2 * first + first * second + second + 2 * second + second * 6 + 6
    assert rows[0]["n_parameters"] == counted
    data = json.loads((tmp_path / "run" / "dataset.json").read_text())
    assert data["class_labels"] == [[1, 0], [2, 1], [4, 2], [7, 3], [12, 4], [13, 5]]
    assert data["class_names"] == ["1", "2", "4", "7", "12", "13"] and data["input_shape"] == [5]
    assert len(data["mean"]) == len(data["std"]) == 5 and data["n_train"] + data["n_validation"] + data["n_test"] == 597
    assert "train: 3 of 600 rows dropped as they hold NaN or infinity: row 5, 17, 41" in data["notes"]


@pytest.mark.slow
def test_other_data_are_refused_at_a_resume(job: Path, tmp_path: Path) -> None:
    nord("run", job, "--out", "run", "--set", "training.epochs=1", cwd=tmp_path)
    before = (tmp_path / "run" / "dataset.json").read_text()
    x, y = vectors()
    np.savez(tmp_path / "d.npz", x=x + 1, y=y)
    more = ("resume", tmp_path / "run", "--set", "budget.trials=3")
    refused = nord(*more, cwd=tmp_path, expect=2)
    assert "the data of arrays are not those that the search began with (other fingerprint than in dataset.json)" in (
        refused.stderr
    )
    assert "or accept with --accept-changes" in refused.stderr and len(trials(tmp_path / "run")) == 2
    assert (tmp_path / "run" / "dataset.json").read_text() == before
    nord(*more, "--accept-changes", cwd=tmp_path)
    after = json.loads((tmp_path / "run" / "dataset.json").read_text())
    assert after["fingerprint"] != json.loads(before)["fingerprint"] and len(trials(tmp_path / "run")) == 3


def test_a_space_of_maps_says_that_vectors_are_none(job: Path, tmp_path: Path) -> None:
    search = Search(
        space={"name": "conv_graph", "max_layers": 2},
        strategy="random_search",
        dataset={"name": "arrays", "path": "d.npz"},
        budget={"trials": 2},
        limits={"infeasible_in_a_row": 10},
        folder=tmp_path,
    )
    with pytest.raises(BadInput, match=r"10 candidates in a row .*Conv2d.*5"):
        search.run(tmp_path / "run")
    assert RunFolder(tmp_path / "run").history().state == "error"


def test_scripts_evaluate_dense_networks_on_vectors() -> None:
    conf = Configs()
    conf.add_classification_dataset("vectors", 6, (), 5, vectors)
    conf.add_regression_dataset("sums", 1, (), 5, lambda: (vectors()[0], vectors()[0][:, 0]))
    network = NeuralDescriptor()
    network.add_layer_sequential(nn.Linear, {"in_features": 5, "out_features": 16})
    network.add_layer_sequential(nn.ReLU)
    evaluator = LocalEvaluator(optim.Adam, {"lr": 0.02}, batch_size=32)
    assert evaluator.descriptor_evaluate(network, 8, dataset="vectors", seed=1).metrics["accuracy"] > 0.8
    assert evaluator.descriptor_evaluate(network, 20, dataset="sums", seed=1).loss < 1.0  # their variance is above 5
