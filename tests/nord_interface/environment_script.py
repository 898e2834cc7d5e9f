"""What runs under mpirun: `python environment_script.py FOLDER SCENARIO`; the master leaves result.json in FOLDER."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

from nord_hpc.cluster import messages
from nord_hpc.configurations.all import Configs
from nord_hpc.errors import Infeasible, NordError
from nord_hpc.neural_nets import DistributedEvaluator, Environment, LocalEvaluator, NeuralDescriptor, NeuralNet
from nord_hpc.utils import assure_reproducibility

FOLDER, SCENARIO = Path(sys.argv[1]), sys.argv[2]


def rank() -> int:
    """Of this process; a function, as what is sent to other ranks carries the master's globals with it."""
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))


def listing() -> NeuralDescriptor:
    d = NeuralDescriptor()
    d.add_layer(nn.Conv2d, {"in_channels": 3, "out_channels": 5, "kernel_size": 5}, "conv")
    d.add_layer(nn.MaxPool2d, {"kernel_size": 2, "stride": 2}, "pool")
    d.connect_layers("conv", "pool")
    return d


def median_margin(predicted: torch.Tensor, targets: torch.Tensor) -> float:
    best = predicted.topk(2).values
    return float((best[:, 0] - best[:, 1]).median())


class Faulty:
    """A loss that fails on one rank alone."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if rank() == 1 and self.how == "raise":
            raise ArithmeticError("rank 1 cannot count")
        if rank() == 1 and self.how == "die":
            os._exit(9)
        if rank() == 0 and self.how == "master":
            raise ArithmeticError("the master cannot count")
        return nn.functional.cross_entropy(outputs, targets)


class Unreadable:
    """A loss that can be sent, and not be opened."""

    def __reduce__(self) -> Any:
        return (_fail_to_open, ())


def _fail_to_open() -> None:
    raise LookupError("there is nothing here")


class Doubled(nn.Module):
    """A layer class of the script."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def message(error: Exception) -> dict[str, Any]:
    return {"kind": type(error).__name__, "text": str(error), "cause": str(error.__cause__ or "")}


def work() -> dict[str, Any]:
    """All that ranks can do together, in one environment."""
    assure_reproducibility(4)
    found: dict[str, Any] = {}
    with Environment(optim.Adam, {"lr": 0.01}, shards=6, verbose=True, batch_size=120) as environment:
        found["ranks"] = [environment.world_rank, environment.world_size, environment.local_rank]
        metrics = ["accuracy", "auc", median_margin]
        ours = DistributedEvaluator(optim.Adam, {"lr": 0.01}, shards=6, batch_size=120, metrics=metrics)
        found["descriptor"] = ours.descriptor_evaluate(listing(), 2, dataset="cifar10")[:2]
        found["environment"] = environment.descriptor_evaluate(listing(), 1, data_percentage=0.5, seed=1)[:2]
        found["local"] = LocalEvaluator(optim.SGD, {"lr": 0.01}).descriptor_evaluate(listing(), 1, seed=1)[:2]
        found["shards"] = DistributedEvaluator(optim.SGD, {"lr": 0.01}).descriptor_evaluate(listing(), 1, seed=1)[0]
        net = NeuralNet(listing(), 10, (32, 32), 3, dense_part="dense_net", seed=2)
        found["net"] = environment.net_evaluate(net, 1, seed=1)[:2]
        found["again"] = environment.net_evaluate(net, 0, seed=1)[:2]
        own = listing()
        own.add_layer_sequential(Doubled, {})
        found["own layer"] = environment.descriptor_evaluate(own, 1, seed=1)[0]
        conf = Configs()
        conf.add_classification_dataset("mine", 2, (4, 4), 1, lambda: (torch.randn(60, 1, 4, 4), torch.arange(60) % 2))
        torch.manual_seed(1)
        x = torch.randn(90, 1, 4, 4)
        conf.DATA_LOAD["mine"] = lambda: (x, (x.mean((1, 2, 3)) > 0).long())
        dense = NeuralDescriptor()
        dense.add_layer(nn.Flatten, {})
        found["mine"] = environment.descriptor_evaluate(dense, 2, dataset="mine", seed=1)[:2]
        found["repeated"] = []
        for _ in range(2):
            assure_reproducibility(7)
            found["repeated"].append(environment.descriptor_evaluate(listing(), 1)[:2])
        found["untrained"] = environment.descriptor_evaluate(listing(), 2, untrained=True, seed=1)[:2]
    return found


def failures() -> None:
    """Evaluations that fail on some rank, one after each that does not, and at last one that nobody catches."""
    found: dict[str, Any] = {"after": []}
    with Environment() as environment:
        for name, criterion in (
            ("raise", Faulty("raise")),
            ("master", Faulty("master")),
            ("unreadable", Unreadable()),
            ("infeasible", None),
        ):
            d = listing()
            if name == "infeasible":
                d.add_layer(nn.ReLU, {}, "apart")
            try:
                DistributedEvaluator(optim.SGD, {"lr": 0.01}, criterion=criterion).descriptor_evaluate(d, 1, seed=1)
            except (ArithmeticError, LookupError, Infeasible) as error:
                found[name] = message(error)
            ours = DistributedEvaluator(optim.SGD, {"lr": 0.01})
            found["after"].append(ours.descriptor_evaluate(listing(), 1, seed=1).loss)
        (FOLDER / "result.json").write_text(json.dumps(found))
        environment.print("all caught")
        DistributedEvaluator(optim.SGD, {"lr": 0.01}, criterion=Faulty("raise")).descriptor_evaluate(listing(), 1)


def large() -> dict[str, Any]:
    """Data in memory that are larger than a message may be, and then an ordinary evaluation."""
    messages.LARGEST_MESSAGE = 2**20
    x = torch.randn(400, 1, 40, 40)  # 2.5 MB
    conf = Configs()
    conf.add_classification_dataset("large", 2, (40, 40), 1, lambda: (x, torch.arange(400) % 2))
    found: dict[str, Any] = {}
    with Environment(optim.SGD, {"lr": 0.01}) as environment:
        try:
            environment.descriptor_evaluate(listing(), 1, dataset="large", seed=1)
        except messages.MessageTooLarge as error:
            found["refused"] = str(error)
        found["after"] = environment.descriptor_evaluate(listing(), 1, seed=1).loss
    return found


def main() -> None:
    if SCENARIO == "work":
        found = work()
    elif SCENARIO == "large":
        found = large()
    elif SCENARIO == "failures":
        failures()
        return
    elif SCENARIO == "body":
        with Environment() as environment:
            environment.descriptor_evaluate(listing(), 1)
            raise ValueError("the body failed")
    elif SCENARIO == "before":
        if rank() == 1:
            raise ValueError("a rank failed before it entered")
        with Environment() as environment:
            environment.descriptor_evaluate(listing(), 1)
    else:
        with Environment(criterion=Faulty(SCENARIO)) as environment:
            environment.descriptor_evaluate(listing(), 1)
    found["rank"] = rank()
    (FOLDER / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    try:
        main()
    except NordError as error:
        sys.exit(f"{type(error).__name__}: {error}")
