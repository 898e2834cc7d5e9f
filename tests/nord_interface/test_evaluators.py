"""Evaluators on this process: what comes back, and that every argument counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_data import blobs
from torch import nn, optim

from nord_hpc.errors import BadInput, Infeasible, TrialFailed
from nord_hpc.neural_nets import (
    DistributedEvaluator,
    LocalBatchEvaluator,
    LocalEvaluator,
    NeuralDescriptor,
    NeuralNet,
)
from nord_hpc.scripting.configs import Configs


def small(channels: int = 4) -> NeuralDescriptor:
    d = NeuralDescriptor()
    d.add_layer_sequential(nn.Conv2d, {"in_channels": 1, "out_channels": channels, "kernel_size": 3})
    d.add_layer_sequential(nn.ReLU, {})
    return d


@pytest.fixture
def table(conf: Configs) -> Configs:
    conf.add_classification_dataset("rows", 3, (6, 6), 1, blobs)
    conf.add_regression_dataset("line", 1, (6, 6), 1, sums)
    return conf


def sums() -> tuple[np.ndarray, np.ndarray]:
    x, _ = blobs()
    return x, x.sum((1, 2, 3))


def evaluator(table: Configs, cls: Any = LocalEvaluator, **options: Any) -> Any:
    return cls(optim.Adam, {"lr": 0.01}, configs=table, batch_size=options.pop("batch_size", 30), **options)


def run(table: Configs, *, dataset: str = "rows", epochs: int = 3, seed: int = 1, **options: Any) -> Any:
    arguments = {key: options.pop(key) for key in ("data_percentage", "untrained") if key in options}
    return evaluator(table, **options).descriptor_evaluate(small(), epochs, dataset=dataset, seed=seed, **arguments)


def test_the_listing_of_the_paper(monkeypatch: pytest.MonkeyPatch, data_folder: Path) -> None:
    monkeypatch.setenv("NORD_HPC_DATA", str(data_folder))
    listing = """
import torch.nn as nn, torch.optim as opt
from nord_hpc.neural_nets import LocalEvaluator, NeuralDescriptor
from nord_hpc.configurations.all import Configs
dataset = 'cifar10'
conf = Configs()
d = NeuralDescriptor()
d.add_layer(nn.Conv2d, {'in_channels': 3, 'out_channels': 5, 'kernel_size': 5}, 'conv')
d.add_layer(nn.MaxPool2d, {'kernel_size': 2, 'stride': 2}, 'pool')
d.connect_layers('conv', 'pool')
evaluator = LocalEvaluator(optimizer_class=opt.Adam, optimizer_params={}, verbose=True)
loss, metrics, total_time = evaluator.descriptor_evaluate(descriptor=d, epochs=2, dataset=dataset)
"""
    names: dict[str, Any] = {}
    exec(listing, names)
    assert names["loss"] < 2.2  # log(10) = 2.30 is chance
    assert names["metrics"]["accuracy"] > 0.2
    assert 0 < names["total_time"] < 60


def test_learns_and_says_so(table: Configs, capsys: pytest.CaptureFixture[str]) -> None:
    loss, metrics, seconds = run(table, verbose=True, epochs=6)
    assert metrics["accuracy"] > 0.8
    assert loss < 0.6
    assert seconds > 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("epoch 1/6: training loss ")
    assert lines[6].startswith(f"validation: loss {loss:.4f}, accuracy {metrics['accuracy']:.4f}, ")
    run(table)
    assert capsys.readouterr().out == ""


def test_seeds(table: Configs) -> None:
    assert run(table)[:2] == run(table)[:2]
    assert run(table)[:2] != run(table, seed=2)[:2]
    torch.manual_seed(3)
    first = run(table, seed=None)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    assert run(table, seed=None)[:2] == first[:2]
    assert torch.equal(torch.get_rng_state(), state)
    assert run(table, seed=None)[:2] != first[:2]  # the next one draws the next seed


def test_every_argument_counts(table: Configs) -> None:
    plain = run(table)[:2]
    for options in (
        {"data_percentage": 0.5},
        {"batch_size": 20},
        {"scheduler": "cosine"},
        {"scheduler": optim.lr_scheduler.ExponentialLR, "scheduler_params": {"gamma": 0.1}},
        {"criterion": nn.MultiMarginLoss},
        {"split": "test"},
        {"validation": 0.4},
        {"shards": 3},
        {"epochs": 2},
    ):
        assert run(table, **options)[:2] != plain, options


def test_untrained(table: Configs) -> None:
    loss, metrics, seconds = run(table, untrained=True)
    assert seconds == 0
    assert loss == pytest.approx(np.log(3), abs=0.3)
    assert run(table, epochs=0)[:2] == (loss, metrics)


def test_test_split_is_scored_after_training_on_all_the_rest(table: Configs) -> None:
    seen = {}

    def count(predicted: torch.Tensor, targets: torch.Tensor) -> float:
        return len(targets)

    for split in ("validation", "test"):
        seen[split] = run(table, split=split, metrics=[count])[1]["count"]
    assert seen == {"validation": 48, "test": 60}

    # 240 samples for training, or 192: one more batch of 240 or none.
    steps = []

    class Counted(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            steps.append(1)
            return super().step(closure)

    for split, expected in (("validation", 6), ("test", 8)):
        LocalEvaluator(Counted, {"lr": 0.1}, configs=table, batch_size=30, split=split).descriptor_evaluate(
            small(), 1, dataset="rows"
        )
        assert len(steps) == expected
        steps.clear()


def test_losses_and_metrics_by_name_or_callable(table: Configs) -> None:
    named = run(table, metrics=["accuracy", "balanced_accuracy", "macro_f1", "auc", "cross_entropy"])
    assert set(named.metrics) == {"accuracy", "balanced_accuracy", "macro_f1", "auc", "cross_entropy"}
    assert named.loss == pytest.approx(named.metrics["cross_entropy"], rel=1e-5)
    for criterion in ("one_hot_cross_entropy", "kl_divergence", nn.CrossEntropyLoss, nn.functional.cross_entropy):
        found = run(table, criterion=criterion)
        assert found.loss == pytest.approx(named.loss, rel=1e-3), criterion
    table.CRITERION["rows"] = nn.KLDivLoss
    table.METRIC["rows"] = lambda predicted, targets: {"share": float((predicted.argmax(1) == targets).float().mean())}
    found = run(table)
    assert found.loss == pytest.approx(named.loss, rel=1e-3)
    assert found.metrics == {"share": pytest.approx(named.metrics["accuracy"], abs=0.03)}


def test_regression(table: Configs) -> None:
    before = run(table, dataset="line", untrained=True)
    after = run(table, dataset="line", epochs=15)
    assert set(after.metrics) == {"mean_squared_error", "mean_absolute_error"}
    assert after.loss == pytest.approx(after.metrics["mean_squared_error"], rel=1e-5)
    assert after.loss < 0.5 * before.loss
    absolute = run(table, dataset="line", criterion="mean_absolute_error")
    assert absolute.loss == pytest.approx(absolute.metrics["mean_absolute_error"], rel=1e-5)


def test_one_hot_targets(table: Configs) -> None:
    def one_hot() -> tuple[np.ndarray, np.ndarray]:
        x, y = blobs()
        return x, np.eye(3, dtype=np.float32)[y]

    table.add_dataset("hot", 3, (6, 6), 1, "one_hot_cross_entropy", "one_hot_accuracy", None, one_hot, "dense_net")
    assert run(table, dataset="hot", epochs=6).metrics["one_hot_accuracy"] > 0.8
    assert run(table, dataset="hot", criterion="kl_divergence", epochs=6).metrics["one_hot_accuracy"] > 0.8


def test_networks_are_trained_in_place(table: Configs) -> None:
    net = NeuralNet(small(), 3, (6, 6), 1, seed=5)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    ours = evaluator(table)
    loss, metrics, _, same = ours.net_evaluate(net, 3, dataset="rows", return_net=True, seed=1)
    assert same is net
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert len(ours.net_evaluate(net, 0, dataset="rows")) == 3
    assert ours.net_evaluate(net, 0, dataset="rows")[:2] == (pytest.approx(loss), metrics)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    assert ours.net_evaluate(plain, 6, dataset="rows")[1]["accuracy"] > 0.7


def test_an_evaluator_serves_several_data_sets(table: Configs) -> None:
    ours = evaluator(table)
    first = ours.descriptor_evaluate(small(), 1, dataset="rows", seed=1)
    assert set(ours.descriptor_evaluate(small(), 1, dataset="line", seed=1).metrics) == {
        "mean_squared_error",
        "mean_absolute_error",
    }
    assert ours.descriptor_evaluate(small(), 1, dataset="rows", seed=1)[:2] == first[:2]
    assert ours.descriptor_evaluate(small(), 1, dataset="digits", seed=1).metrics["accuracy"] < 1


def test_several_networks_on_the_same_batches(table: Configs) -> None:
    broken = small()
    broken.add_layer(nn.ReLU, {}, "apart")
    ours = evaluator(table, LocalBatchEvaluator)
    result = ours.descriptors_evaluate([small(), broken, small(6), small()], 2, dataset="rows", seed=1)
    losses, metrics, total_time = result
    alone = ours.descriptor_evaluate(small(), 2, dataset="rows", seed=1)
    assert losses[0] == losses[3] == alone.loss
    assert metrics[0] == metrics[3] == alone.metrics
    assert losses[2] not in (None, losses[0])
    assert (losses[1], metrics[1]) == (None, {})
    assert result.reasons == (None, "no path from 'layer0' to 'apart'", None, None)
    assert total_time > 0


def test_each_network_sees_the_same_samples(table: Configs) -> None:
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(36, 3)
            self.seen: list[float] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.seen.append(float(x.sum()))
            result: torch.Tensor = self.dense(x.flatten(1))
            return result

    nets = [Recorder(), Recorder()]
    evaluator(table, LocalBatchEvaluator).nets_evaluate(nets, 2, dataset="rows")
    assert nets[0].seen == nets[1].seen
    assert len(set(nets[0].seen)) == 12


def test_failures(table: Configs) -> None:
    broken = small()
    broken.add_layer(nn.ReLU, {}, "apart")
    with pytest.raises(Infeasible, match=r"^no path from 'layer0' to 'apart'$"):
        evaluator(table).descriptor_evaluate(broken, 1, dataset="rows")
    with pytest.raises(TrialFailed, match=r"^the training loss is not finite in epoch 1, step 1 of 6$"):
        run(table, criterion=lambda outputs, targets: outputs.sum() * float("nan"))
    with pytest.raises(BadInput, match=r"data_percentage: 50 is out of range; set a share above 0, at most 1"):
        run(table, data_percentage=50)
    with pytest.raises(BadInput, match=r"epochs: -1 is out of range; set 0 or more"):
        run(table, epochs=-1)
    with pytest.raises(BadInput, match=r"split: 'train' is not a choice; set validation or test"):
        run(table, split="train")
    with pytest.raises(BadInput, match=r"scheduler: 'step' is not a choice; set one of constant, cosine, linear, or a"):
        run(table, scheduler="step")
    with pytest.raises(BadInput, match=r"learning_rate is no option of an evaluator; set any of "):
        run(table, learning_rate=0.1)
    with pytest.raises(BadInput, match=r"batch_size 30 leaves fewer than 2 samples to each of 16 shards; set batch_s"):
        run(table, shards=16)
    with pytest.raises(BadInput, match=r"optimizer_params: .*'rate'"):
        LocalEvaluator(optim.SGD, {"rate": 1}, configs=table).descriptor_evaluate(small(), 1, dataset="rows")
    with pytest.raises(BadInput, match=r"a DistributedEvaluator works inside an Environment"):
        DistributedEvaluator(optim.SGD, {}, configs=table).descriptor_evaluate(small(), 1, dataset="rows")


def test_data_that_are_not_as_their_record_says(table: Configs) -> None:
    table.INPUT_SHAPE["rows"] = (5, 6)
    text = (
        r"dataset rows: its samples are 1x6x6, but CHANNELS and INPUT_SHAPE say 1x5x6; set channels 1 and input_shape"
    )
    with pytest.raises(BadInput, match=text):
        run(table)
    table.INPUT_SHAPE["rows"] = (6, 6)
    table.NUM_CLASSES["rows"] = 2
    with pytest.raises(BadInput, match=r"it has 3 classes, but NUM_CLASSES says 2; set num_classes 3"):
        run(table)
