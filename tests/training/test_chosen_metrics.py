"""Metrics that are asked for: by name, for one-hot targets, by callable, and over all samples at once."""

from __future__ import annotations

import math

import example
import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import nn

from nord_hpc.data_parallel.single import SingleGang
from nord_hpc.errors import BadInput
from nord_hpc.training.data import Part
from nord_hpc.training.metrics import chosen, greater_is_better, metrics_of
from nord_hpc.training.scoring import score
from nord_hpc.training.trainer import autocast_of


def outputs_and_labels(n: int = 90, *, n_classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    outputs = torch.randn((n, n_classes), generator=generator).mul(4).round()  # with ties
    return outputs, torch.randint(0, n_classes, (n,), generator=generator)


def measured(outputs: torch.Tensor, targets: torch.Tensor, given: list[object], *, batch_size: int = 7) -> object:
    split = example.Split(outputs.numpy().astype(np.float32), targets.numpy())
    return score(
        nn.Identity(),
        Part(split, example.Info(n_outputs=outputs.shape[1]), device=example.CPU),
        metrics=chosen(given, n_outputs=outputs.shape[1]),  # type: ignore[arg-type]
        batch_size=batch_size,
        autocast=autocast_of(example.CPU, "fp32"),
        data_parallel=SingleGang(),
        control=example.Free(),
        when="now",
    )


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_auc_agrees_with_scikit_learn(batch_size: int) -> None:
    outputs, labels = outputs_and_labels()
    expected = reference.roc_auc_score(labels, outputs.double().softmax(1), multi_class="ovr")
    assert measured(outputs, labels, ["auc"], batch_size=batch_size) == {"auc": pytest.approx(expected)}
    two, labels = outputs_and_labels(n_classes=2)
    expected = reference.roc_auc_score(labels, two.double().softmax(1)[:, 1])
    assert measured(two, labels, ["auc"], batch_size=batch_size) == {"auc": pytest.approx(expected)}


def test_auc_of_classes_that_do_not_occur() -> None:
    outputs, labels = outputs_and_labels()
    only_zero = torch.zeros_like(labels)
    assert measured(outputs, only_zero, ["auc"]) == {"auc": 0.5}
    some = labels.clamp(max=2)
    probabilities = outputs.double().softmax(1)
    areas = [reference.roc_auc_score(some == label, probabilities[:, label]) for label in range(3)]
    assert measured(outputs, some, ["auc"]) == {"auc": pytest.approx(np.mean(areas))}


def test_one_hot_targets_and_distributions() -> None:
    outputs, labels = outputs_and_labels()
    one_hot = nn.functional.one_hot(labels, 4).float()
    names = ["accuracy", "balanced_accuracy", "macro_f1", "cross_entropy", "auc"]
    assert measured(outputs, one_hot, [*names]) == measured(outputs, labels, [*names])
    accuracy = float((outputs.argmax(1) == labels).double().mean())
    assert measured(outputs, one_hot, ["one_hot_accuracy"]) == {"one_hot_accuracy": pytest.approx(accuracy)}
    targets = outputs.flip(0).softmax(1)
    expected = float(nn.functional.kl_div(outputs.log_softmax(1), targets, reduction="batchmean"))
    assert measured(outputs, targets, ["kl_divergence"]) == {"kl_divergence": pytest.approx(expected, rel=1e-5)}
    entropy = measured(outputs, labels, ["cross_entropy", "kl_divergence", "one_hot_cross_entropy"])
    assert isinstance(entropy, dict)
    assert entropy["kl_divergence"] == pytest.approx(entropy["cross_entropy"]) == entropy["one_hot_cross_entropy"]


def test_callables_get_all_samples_in_order() -> None:
    outputs, labels = outputs_and_labels()
    seen = {}

    def top_two(predicted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen["all"] = torch.equal(predicted, outputs) and torch.equal(targets, labels)
        return (predicted.topk(2).indices == targets[:, None]).any(1).float().mean()

    def both(predicted: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        return {"least": float(predicted.min()), "classes": len(targets.unique())}

    found = measured(outputs, labels, [top_two, both, "accuracy"])
    assert isinstance(found, dict)
    assert set(found) == {"top_two", "least", "classes", "accuracy"}
    assert (found["least"], found["classes"], seen) == (float(outputs.min()), 4.0, {"all": True})
    assert found["top_two"] > found["accuracy"]


def test_what_is_no_metric() -> None:
    with pytest.raises(BadInput, match=r"metrics: unknown metric 'acuracy': did you mean accuracy\? set one of"):
        chosen(["acuracy"], n_outputs=2)
    outputs, labels = outputs_and_labels()
    with pytest.raises(BadInput, match=r"metric words: gave str; return a number or a dict"):

        def words(predicted: torch.Tensor, targets: torch.Tensor) -> str:
            return "good"

        measured(outputs, labels, [words])


def test_auc_as_the_objective_of_a_job() -> None:
    assert greater_is_better("auc")
    names = [metric.name for metric in metrics_of("classification", n_outputs=3, objective="auc")]
    assert names == ["accuracy", "cross_entropy", "balanced_accuracy", "macro_f1", "auc"]
    assert len(metrics_of("classification", n_outputs=3, objective="accuracy")) == 4
    assert not math.isnan(metrics_of("classification", n_outputs=3, objective="auc")[4].of_all(*outputs_and_labels()))
