"""The evaluator of recorded trainings: what it looks up, what it predicts, and how wrong it says that this is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nord_hpc import job as jobs
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.evaluators.recorded_table import (
    Facts,
    RecordedTableEvaluator,
    Recording,
    Table,
    cross_validated,
    read_table,
    write_table,
)
from nord_hpc.evaluators.recorded_table.surrogate import Surrogate, describe_all, features
from nord_hpc.trial import Fidelity, Trial


class FreeControl:
    def check(self) -> None:
        """Nothing stops."""


class SingleGang:
    rank, size = 0, 1

    def connect(self) -> Any:
        raise AssertionError("nothing is trained")


def chain(*channels: int, kernel: int = 3) -> NeuralDescriptor:
    descriptor = NeuralDescriptor()
    for number in channels:
        descriptor.add_layer_sequential("Conv2d", {"out_channels": number, "kernel_size": kernel})
        descriptor.add_layer_sequential("ReLU")
    return descriptor


def score(channels: tuple[int, ...], epochs: int) -> float:
    return 1 - 1 / (1 + sum(map(math.log2, channels))) / (1 + epochs)


def example(n: int = 40) -> Table:
    """Chains of one to three layers, whose fitness grows with their sizes and with the epochs."""
    rng = np.random.Generator(np.random.PCG64(1))
    networks, recordings, sizes = {}, [], {}
    while len(networks) < n:
        channels = tuple(int(c) for c in 2 ** rng.integers(1, 6, rng.integers(1, 4)))
        descriptor = chain(*channels)
        name = descriptor.canonical_hash()
        if name in networks:
            continue
        networks[name], sizes[name] = descriptor.to_json(), (10 * sum(channels), 100 * sum(channels))
        curve = tuple((epochs, score(channels, epochs)) for epochs in (1, 2, 3, 4))
        seconds = 0.25 * sum(channels)
        recordings.append(Recording(name, 4, 1.0, len(recordings), {}, curve[-1][1], seconds, curve))
    facts = Facts("accuracy", "maximize", True, "toy data", ("a", "b"), {}, None, "1")
    error = cross_validated(recordings, networks)
    assert error is not None
    return Table(
        replace(facts, error={"mean_absolute": error.mean_absolute, "kendall_tau": error.kendall_tau}),
        networks,
        sizes,
        recordings,
    )


@pytest.fixture(scope="module")
def table() -> Table:
    return example()


def evaluator(path: Path, *, epochs: int = 4, metric: str = "accuracy", **options: Any) -> RecordedTableEvaluator:
    data = {
        "name": "t",
        "space": {"name": "conv_graph"},
        "strategy": {"name": "random_search"},
        "evaluator": {"name": "table", "path": str(path), **options},
        "training": {"epochs": epochs},
        "objective": {"metric": metric},
        "budget": {"trials": 1},
    }
    job = jobs.from_mapping(data, folder=path.parent)
    cls, made = jobs.options_of("evaluator", job.evaluator, folder=path.parent)
    assert cls is RecordedTableEvaluator
    return RecordedTableEvaluator(made, job=job, folder=path.parent, weights_folder=path.parent)  # type: ignore[arg-type]


def outcome_of(made: RecordedTableEvaluator, descriptor: NeuralDescriptor, epochs: int = 4, seed: int = 0) -> Any:
    name = descriptor.canonical_hash()
    trial = Trial(0, None, (), descriptor.to_json(), name, Fidelity(epochs), seed)
    return made.evaluate(trial, gang=SingleGang(), control=FreeControl(), keep_above=None)


def test_the_file_gives_back_what_was_written(tmp_path: Path, table: Table) -> None:
    tested = [replace(table.recordings[0], test={"accuracy": 0.5}, settings={"training.optimizer.lr": 0.1})]
    whole = replace(table, recordings=[*tested, *table.recordings[1:]])
    write_table(tmp_path / "new" / "t.h5", whole)
    assert read_table(tmp_path / "new" / "t.h5") == whole
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["t.h5"]


def test_recorded_trainings_are_looked_up(tmp_path: Path, table: Table) -> None:
    write_table(tmp_path / "t.h5", table)
    made = evaluator(tmp_path / "t.h5")
    first = table.recordings[0]
    descriptor = NeuralDescriptor.from_json(table.networks[first.descriptor_hash])
    descriptor.add_suffix("-renamed")
    outcome = outcome_of(made, descriptor)
    assert outcome.fitness == first.fitness and outcome.metrics["n_trainings"] == 1
    assert outcome.provenance == {"table": "t.h5", "repeat": "sampled", "predicted": False}
    examination = made.examine(descriptor, Fidelity(4))
    assert examination.cost == round(1e6 * first.seconds)
    assert (examination.n_parameters, examination.multiply_adds) == table.sizes[first.descriptor_hash]
    # The curve tells fewer epochs, at their share of the time.
    assert outcome_of(made, descriptor, epochs=2).fitness == first.curve[1][1]
    assert made.examine(descriptor, Fidelity(2)).cost == round(1e6 * first.seconds / 2)


def test_several_trainings_of_one_network(tmp_path: Path, table: Table) -> None:
    first = table.recordings[0]
    twice = replace(table, recordings=[*table.recordings, replace(first, fitness=0.0, seconds=0.0, seed=99)])
    write_table(tmp_path / "t.h5", twice)
    descriptor = NeuralDescriptor.from_json(table.networks[first.descriptor_hash])
    sampled = {outcome_of(evaluator(tmp_path / "t.h5"), descriptor, seed=seed).fitness for seed in range(20)}
    assert sampled == {first.fitness, 0.0}
    mean = outcome_of(evaluator(tmp_path / "t.h5", repeat="mean"), descriptor)
    assert mean.fitness == pytest.approx(first.fitness / 2) and mean.metrics["training_seconds"] == first.seconds / 2


def test_other_networks_are_predicted_and_marked(tmp_path: Path, table: Table) -> None:
    write_table(tmp_path / "t.h5", table)
    made = evaluator(tmp_path / "t.h5")
    pairs = ((a, b) for a in (4, 8, 16) for b in (4, 8, 16))
    other = next(pair for pair in pairs if chain(*pair).canonical_hash() not in table.networks)
    outcome = outcome_of(made, chain(*other))
    assert outcome.provenance["predicted"] is True and outcome.metrics["n_trainings"] == 0
    assert outcome.fitness == pytest.approx(score(other, 4), abs=0.02)
    assert outcome_of(evaluator(tmp_path / "t.h5"), chain(*other)).fitness == outcome.fitness
    error = table.facts.error
    assert error is not None and error["mean_absolute"] < 0.01 and error["kendall_tau"] > 0.7
    assert f"mean absolute error of {error['mean_absolute']:.4f}" in made.describe()
    strict = evaluator(tmp_path / "t.h5", unknown="infeasible")
    with pytest.raises(Infeasible, match=r"with 4 epochs is not among the 40 trainings of t\.h5"):
        strict.examine(chain(*other), Fidelity(4))
    assert "others are infeasible" in strict.describe()


def test_a_curve_of_a_falling_learning_rate_tells_no_shorter_training(tmp_path: Path, table: Table) -> None:
    write_table(tmp_path / "t.h5", replace(table, facts=replace(table.facts, curves_hold=False)))
    descriptor = NeuralDescriptor.from_json(table.networks[table.recordings[0].descriptor_hash])
    outcome = outcome_of(evaluator(tmp_path / "t.h5"), descriptor, epochs=2)
    assert outcome.provenance["predicted"] is True


def test_wrong_files_and_jobs_are_refused(tmp_path: Path, table: Table) -> None:
    path = tmp_path / "t.h5"
    with pytest.raises(BadInput, match=r"t\.h5: cannot be read as a table of trainings"):
        evaluator(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(BadInput, match=r"t\.h5: cannot be read as a table of trainings"):
        evaluator(path)
    write_table(path, table)
    with pytest.raises(BadInput, match=r"maximize f1 is not in .*; set metric accuracy and direction maximize"):
        evaluator(path, metric="f1")
    few = replace(table, facts=replace(table.facts, error=None), recordings=table.recordings[:3])
    write_table(path, few)
    with pytest.raises(BadInput, match="fewer than 10 networks, from which nothing can be predicted"):
        evaluator(path)
    assert cross_validated(few.recordings, table.networks) is None


def test_cross_validation_holds_whole_networks_back(table: Table) -> None:
    """Two trainings of a network never tell of each other: noise that belongs to networks is not predicted."""
    rng = np.random.Generator(np.random.PCG64(2))
    noise = {name: float(rng.normal()) for name in table.networks}
    repeated = [replace(r, fitness=noise[r.descriptor_hash], seed=seed) for r in table.recordings for seed in (0, 1)]
    error = cross_validated(repeated, table.networks)
    assert error is not None and error.networks == 40
    assert error.root_mean_square > 0.8 * np.std(list(noise.values()))
    fitted = Surrogate(describe_all(repeated, table.networks), repeated)
    seen, _ = fitted.predict(describe_all(repeated, table.networks))
    assert float(np.abs(seen - [r.fitness for r in repeated]).mean()) < 0.3 * error.mean_absolute


def test_features_are_of_the_live_layers() -> None:
    descriptor = chain(8, 16)
    descriptor.add_layer("Conv2d", {"out_channels": 999, "kernel_size": 9}, "dead")
    descriptor.last_layer = "layer3"
    found = features(
        descriptor.to_json(), {"training.optimizer.lr": 0.25, "training.optimizer.name": "sgd"}, Fidelity(3)
    )
    assert found["layers"] == 4 and found["connections"] == 3 and found["depth"] == 4
    assert found["kind Conv2d"] == 2 and found["sum Conv2d.out_channels"] == pytest.approx(math.log2(9) + math.log2(17))
    assert found["largest Conv2d.out_channels"] == pytest.approx(math.log2(17))
    assert found["setting training.optimizer.lr"] == -2 and found["setting training.optimizer.name sgd"] == 1
    assert found["epochs"] == 2 and found["fraction"] == 1
