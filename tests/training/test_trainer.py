"""The loop on one rank: against a loop written out by hand, and its failures."""

from __future__ import annotations

import example
import numpy as np
import pytest
import torch
from torch import nn

from nord_hpc.data_parallel.single import SingleGang
from nord_hpc.errors import BadInput, Infeasible, SearchStopped, TrialFailed
from nord_hpc.training.batches import epoch_order, subset
from nord_hpc.training.data import Part
from nord_hpc.training.trainer import TrainingData, train
from nord_hpc.trial import Fidelity

ALONE = SingleGang()


def by_hand(network: nn.Module, data: TrainingData, optimizer: torch.optim.Optimizer, *, epochs: int) -> None:
    for epoch in range(1, epochs + 1):
        network.train()
        order = torch.from_numpy(epoch_order(subset(101, 101), seed=7, epoch=epoch))
        for step in range(10):
            x, y = data.train.take(order[step * 10 : step * 10 + 10])
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True}, torch.optim.SGD),
        ({"name": "adam", "lr": 0.001, "eps": 1e-3}, torch.optim.Adam),
        ({"name": "adamw", "lr": 0.001, "eps": 1e-3, "weight_decay": 0.05}, torch.optim.AdamW),
        ({"name": "rmsprop", "lr": 0.001, "eps": 1e-2, "alpha": 0.9}, torch.optim.RMSprop),
    ],
)
def test_same_as_a_loop_by_hand(settings: dict[str, object], make: type[torch.optim.Optimizer]) -> None:
    data = example.data()
    network, twin = example.Example(dropout=0.0), example.Example(dropout=0.0)
    example.run(network, data, gang=ALONE, optimizer=settings)
    options = {key: value for key, value in settings.items() if key != "name"}
    by_hand(twin, data, make(twin.parameters(), **options), epochs=2)
    for (name, found), expected in zip(network.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.allclose(found, expected, rtol=2e-3, atol=2e-4), name


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    data = example.data()
    first = example.summary(example.run(example.Example(), data, gang=ALONE, shards=2))
    assert example.summary(example.run(example.Example(), data, gang=ALONE, shards=2)) == first
    assert example.summary(example.run(example.Example(), data, gang=ALONE, shards=2, seed=8)) != first


def test_global_random_state_does_not_matter() -> None:
    data, network = example.data(), example.Example()
    torch.manual_seed(99)
    first = example.run(network, data, gang=ALONE)
    network = example.Example()
    torch.manual_seed(100)
    assert example.summary(example.run(network, data, gang=ALONE)) == example.summary(first)


def test_linear_scaling_of_the_learning_rate() -> None:
    data = example.data()
    sgd = {"name": "sgd", "lr": 0.01}
    scaled = example.run(example.Example(), data, gang=ALONE, shards=2, optimizer=sgd, scale_lr="linear")
    larger = example.run(example.Example(), data, gang=ALONE, shards=2, optimizer={"name": "sgd", "lr": 0.02})
    plain = example.run(example.Example(), data, gang=ALONE, shards=2, optimizer=sgd)
    assert example.summary(scaled) == example.summary(larger)
    assert example.summary(scaled) != example.summary(plain)


class PooledNorm(nn.Module):
    """Batch normalization of one value a channel: it needs two samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.dense = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.dense(self.norm(self.conv(x).mean((2, 3))))
        return result


def test_single_sample_at_the_end_is_dropped() -> None:
    data = example.data(n_train=21, n_validation=5)
    result = example.run(PooledNorm(), data, gang=ALONE, validation_batch_size=1)
    assert (result.steps, result.batches.samples_used) == (4, 20)
    assert result.metrics["accuracy"] * 5 == pytest.approx(round(result.metrics["accuracy"] * 5))


def test_divergence_is_a_failure_with_epoch_and_step() -> None:
    with pytest.raises(TrialFailed, match=r"loss is not finite in epoch 1, step 2 of 10$") as caught:
        example.run(example.Example(), example.data(), gang=ALONE, optimizer={"name": "sgd", "lr": 1e30})
    assert caught.value.kind == "not_finite"


def test_outputs_that_are_not_finite_after_the_last_step() -> None:
    # The only step of the epoch starts from finite weights, so its loss is finite; what it leaves is not.
    with pytest.raises(TrialFailed, match=r"outputs for 47 of 47 samples are not finite after epoch 1") as caught:
        example.run(
            example.Example(),
            example.data(n_train=10),
            gang=ALONE,
            epochs=1,
            optimizer={"name": "sgd", "lr": 3e38},
        )
    assert caught.value.kind == "not_finite"


class Greedy(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.dense = nn.Linear(64, 3)
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_short_memory_is_a_failure_of_its_own_kind(error: Exception) -> None:
    with pytest.raises(TrialFailed, match=r"^out of memory: ") as caught:
        example.run(Greedy(error), example.data(), gang=ALONE)
    assert caught.value.kind == "out_of_memory"


def test_real_allocation_that_fails() -> None:
    class Huge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.empty(1 << 48) + self.dense(x.flatten(1))

    with pytest.raises(TrialFailed, match=r"^out of memory: "):
        example.run(Huge(), example.data(), gang=ALONE)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        example.run(nn.Sequential(nn.Flatten(), nn.Linear(63, 3)), example.data(), gang=ALONE)


def test_control_can_stop_every_step() -> None:
    class Stop:
        calls = 0

        def check(self) -> None:
            self.calls += 1
            if self.calls == 15:
                raise SearchStopped("enough")

    control = Stop()
    with pytest.raises(SearchStopped):
        train(
            example.Example(),
            example.data(),
            settings=example.TrainingSettings(batch_size=4),
            fidelity=Fidelity(epochs=1),
            shards=1,
            seed=0,
            reduction="exact",
            precision="fp32",
            data_parallel=ALONE,
            control=control,
        )
    assert control.calls == 15


def test_reports_come_epoch_by_epoch() -> None:
    seen = []
    result = train(
        example.Example(),
        example.data(),
        settings=example.TrainingSettings(batch_size=10),
        fidelity=Fidelity(epochs=3),
        shards=1,
        seed=0,
        reduction="exact",
        precision="fp32",
        data_parallel=ALONE,
        control=example.Free(),
        on_epoch=seen.append,
    )
    assert tuple(seen) == result.curve
    assert [report.epoch for report in seen] == [1, 2, 3]
    assert all(report.weights_sha256 is None for report in seen)
    assert set(result.metrics) == {"accuracy", "cross_entropy", "balanced_accuracy", "macro_f1"}


def test_refusals() -> None:
    with pytest.raises(Infeasible, match="3 training samples do not give each of 2 shards"):
        example.run(example.Example(), example.data(n_train=3), gang=ALONE, shards=2)
    with pytest.raises(BadInput, match=r"training\.sync_batch_norm: .* set resources\.reduction to fast"):
        example.run(example.Example(), example.data(), gang=ALONE, sync_batch_norm=True)


def test_regression_learns() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    y = (x @ np.array([[1.0, 2.0], [0.5, -1.0], [0.0, 1.0], [-1.0, 0.0]])).astype(np.float32)
    info = example.Info(task="regression", n_outputs=2)
    split = example.Split(x, y)
    data = TrainingData(info, Part(split, info, device=example.CPU), Part(split, info, device=example.CPU))
    torch.manual_seed(0)
    network = nn.Linear(4, 2)
    result = example.run(network, data, gang=ALONE, epochs=15, batch_size=20, optimizer={"name": "sgd", "lr": 0.1})
    assert result.metrics["mean_squared_error"] < 1e-3
    losses = [report.train_loss for report in result.curve]
    assert losses[0] > 0.3
    assert losses[-1] == pytest.approx(0, abs=1e-3)


def test_bfloat16_trains() -> None:
    network = example.Example()
    result = train(
        network,
        example.data(),
        settings=example.TrainingSettings(batch_size=10, optimizer={"name": "adam", "lr": 0.005}),
        fidelity=Fidelity(epochs=2),
        shards=2,
        seed=0,
        reduction="exact",
        precision="bf16",
        data_parallel=ALONE,
        control=example.Free(),
    )
    assert network.conv.weight.dtype == torch.float32
    assert result.metrics["accuracy"] > 0.8
