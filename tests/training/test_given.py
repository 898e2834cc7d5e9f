"""Optimizers, schedulers and losses that the caller gives as Python objects."""

from __future__ import annotations

from typing import Any

import example
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from nord_hpc.data_parallel.single import SingleGang
from nord_hpc.errors import BadInput
from nord_hpc.job import TrainingSettings
from nord_hpc.training.losses import LossMetric, loss_sum
from nord_hpc.training.trainer import Given, TrainingResult, train
from nord_hpc.trial import Fidelity


def run(network: nn.Module, *, epochs: int = 2, shards: int = 1, **given: Any) -> TrainingResult:
    return train(
        network,
        example.data(),
        settings=TrainingSettings(batch_size=10, optimizer={"name": "sgd", "lr": 0.02}),
        fidelity=Fidelity(epochs=epochs),
        shards=shards,
        seed=7,
        reduction="exact",
        precision="fp32",
        data_parallel=SingleGang(),
        control=example.Free(),
        given=Given(**given),
        digests=True,
    )


class Signed(torch.optim.Optimizer):
    """Steps along the sign of the gradient, by each tensor's own mean size: not element by element."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})
        self.shapes = [tuple(parameter.shape) for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                assert parameter.grad is not None
                parameter -= group["lr"] * parameter.grad.sign() * parameter.abs().mean()


def test_torch_classes_give_what_their_names_give() -> None:
    named = example.summary(run(example.Example()))
    assert example.summary(run(example.Example(), optimizer=torch.optim.SGD, optimizer_options={"lr": 0.02})) == named
    assert example.summary(run(example.Example(), optimizer=torch.optim.SGD, optimizer_options={"lr": 0.03})) != named


def test_own_optimizer_sees_the_networks_own_tensors() -> None:
    made: list[Signed] = []

    def make(params: Any, **options: Any) -> Signed:
        made.append(Signed(params, **options))
        return made[-1]

    network, twin = example.Example(dropout=0.0), example.Example(dropout=0.0)
    run(network, epochs=1, optimizer=make, optimizer_options={"lr": 0.02})
    assert made[0].shapes == [tuple(parameter.shape) for parameter in twin.parameters()]
    # By hand.
    from nord_hpc.training.batches import epoch_order, subset

    data, optimizer = example.data(), Signed(twin.parameters(), lr=0.02)
    order = torch.from_numpy(epoch_order(subset(101, 101), seed=7, epoch=1))
    twin.train()
    for step in range(10):
        x, y = data.train.take(order[step * 10 : step * 10 + 10])
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(x), y).backward()
        optimizer.step()
    for (name, found), expected in zip(network.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4), name


def test_wrong_options_of_an_optimizer() -> None:
    with pytest.raises(BadInput, match=r"^optimizer_params: .*'momentun'; correct the parameters of SGD$"):
        run(example.Example(), optimizer=torch.optim.SGD, optimizer_options={"momentun": 0.9})


@pytest.mark.parametrize(
    ("every", "make", "expected"),
    [
        ("epoch", lambda o: lr_scheduler.StepLR(o, 2), [0.02, 0.02, 0.002, 0.002]),
        ("step", lambda o: lr_scheduler.StepLR(o, 20), [0.02, 0.02, 0.002, 0.002]),
        (
            "epoch",
            lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=1e3, threshold_mode="abs"),
            [0.02, 0.02, 0.002, 0.0002],
        ),
    ],
)
def test_schedulers_of_torch(every: str, make: Any, expected: list[float]) -> None:
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    run(
        example.Example(),
        epochs=4,
        optimizer=Watched,
        optimizer_options={"lr": 0.02},
        scheduler=make,
        schedule_every=every,
    )
    assert rates == pytest.approx([rate for rate in expected for _ in range(10)])


def test_own_loss_is_trained_and_measured() -> None:
    focal = loss_sum(lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, label_smoothing=0.2))
    result = run(example.Example(), loss=focal, metrics=[LossMetric(focal)])
    plain = run(example.Example(), metrics=[LossMetric(loss_sum("cross_entropy"))])
    assert set(result.metrics) == {"loss"}
    assert result.curve[1].train_loss != plain.curve[1].train_loss
    assert result.metrics["loss"] > plain.metrics["loss"]


def test_a_mean_over_a_shard_counts_its_samples() -> None:
    def mean_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    whole, halves = (
        run(example.Example(dropout=0.0), shards=shards, loss=loss_sum(given), epochs=1).curve[0].train_loss
        for shards, given in ((2, "cross_entropy"), (2, mean_loss))
    )
    assert whole == pytest.approx(halves, rel=1e-6)
