"""A small job on the digits, and candidates for it, equal on every rank."""

from __future__ import annotations

from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

from nord_hpc import job
from nord_hpc.data_parallel.single import SingleGang
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.evaluators.training_evaluator import TrainingEvaluator
from nord_hpc.interfaces import DataParallel
from nord_hpc.job import Job
from nord_hpc.trial import Trial


class Alone:
    """A gang of one."""

    rank, size = 0, 1

    def connect(self) -> AbstractContextManager[DataParallel]:
        return SingleGang()


class Free:
    """A control that wants nothing."""

    def check(self) -> None:
        pass


def make_job(**sections: Any) -> Job:
    mapping: dict[str, Any] = {
        "name": "test",
        "dataset": {"name": "digits", "fraction": 0.3},
        "space": {"name": "conv_graph"},
        "evaluator": {"name": "training", "head": {"features": "flattened"}},
        "strategy": {"name": "random_search"},
        "training": {"epochs": 2, "batch_size": 32, "optimizer": {"name": "adam", "lr": 0.01}},
        "budget": {"trials": 1},
        "resources": {"shards": 2, "gang": 2},
    }
    for section, values in sections.items():
        mapping[section] = {**mapping.get(section, {}), **values}
    return job.from_mapping(mapping, folder=Path())


def make_evaluator(made: Job, weights_folder: Path) -> TrainingEvaluator:
    _, options = job.options_of("evaluator", made.evaluator, folder=Path())
    return TrainingEvaluator(options, job=made, folder=Path(), weights_folder=weights_folder)


def descriptor(*, dead_branch: bool = False, prefix: str = "") -> NeuralDescriptor:
    """Convolution, batch normalization, ReLU; with `dead_branch`, also one that feeds nothing."""
    made = NeuralDescriptor()
    first = made.add_layer("Conv2d", {"out_channels": 8, "kernel_size": 3}, name=f"{prefix}first")
    names = [first]
    names.append(made.add_layer("BatchNorm2d", {}, name=f"{prefix}norm"))
    names.append(made.add_layer("ReLU", {}, name=f"{prefix}activation"))
    for source, target in pairwise(names):
        made.connect_layers(source, target)
    if dead_branch:
        dead = made.add_layer("Conv2d", {"out_channels": 4, "kernel_size": 3}, name=f"{prefix}dead")
        made.connect_layers(first, dead)
    made.last_layer = names[-1]
    return made


def make_trial(made: Job, net: NeuralDescriptor, *, number: int = 0, seed: int = 11) -> Trial:
    return Trial(
        number,
        None,
        (),
        net.to_json(),
        net.canonical_hash(),
        made.full_fidelity,
        seed=seed,
        shards=made.resources.shards,
        gang=made.resources.gang,
    )
