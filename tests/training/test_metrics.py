"""Metrics against scikit-learn, and as sums over any division into batches."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from nord_hpc.errors import BadInput
from nord_hpc.training.metrics import METRICS, check_name, greater_is_better, metrics_of


def labels_and_outputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn((60, 5), generator=generator)
    outputs[:, 4] -= 100  # a class that is never predicted, and never occurs
    return outputs, torch.randint(0, 4, (60,), generator=generator)


def test_classification_agrees_with_scikit_learn() -> None:
    outputs, targets = labels_and_outputs()
    predicted = outputs.argmax(1)
    found = {m.name: m.compute(m.update(outputs, targets).tolist()) for m in metrics_of("classification", n_outputs=5)}
    assert found == {
        "accuracy": pytest.approx(reference.accuracy_score(targets, predicted)),
        "cross_entropy": pytest.approx(reference.log_loss(targets, outputs.double().softmax(1), labels=range(5))),
        "balanced_accuracy": pytest.approx(reference.balanced_accuracy_score(targets, predicted)),
        "macro_f1": pytest.approx(reference.f1_score(targets, predicted, average="macro")),
    }


def test_regression_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn((40, 1), generator=generator), torch.randn(40, generator=generator)
    found = {m.name: m.compute(m.update(outputs, targets).tolist()) for m in metrics_of("regression", n_outputs=1)}
    assert found == {
        "mean_squared_error": pytest.approx(reference.mean_squared_error(targets, outputs)),
        "mean_absolute_error": pytest.approx(reference.mean_absolute_error(targets, outputs)),
    }


@pytest.mark.parametrize("task", list(METRICS))
def test_sums_add_up_over_batches(task: str) -> None:
    outputs, labels = labels_and_outputs()
    targets = labels if task == "classification" else outputs.flip(0)
    if task == "language_modelling":
        outputs, targets = outputs.view(60, 5, 1).repeat(1, 1, 3), labels.view(60, 1).repeat(1, 3)
    for metric in metrics_of(task, n_outputs=5):
        whole = metric.update(outputs, targets)
        parts = [metric.update(outputs[a:b], targets[a:b]) for a, b in ((0, 7), (7, 8), (8, 60))]
        assert whole.shape == (metric.n_sums,)
        assert whole.dtype == torch.float64
        assert torch.allclose(torch.stack(parts).sum(0), whole, rtol=1e-12)


def test_tokens_are_counted_once_and_padding_never() -> None:
    torch.manual_seed(0)
    outputs, targets = torch.randn(4, 5, 7), torch.randint(0, 5, (4, 7), dtype=torch.int32)
    targets[3, 2:] = -1
    metrics = metrics_of("language_modelling", n_outputs=5)
    found = {metric.name: metric.compute(metric.update(outputs, targets).tolist()) for metric in metrics}
    present = targets >= 0
    rows, labels = outputs.transpose(1, 2)[present].double(), targets[present].long()
    nats = float(torch.nn.functional.cross_entropy(rows, labels))
    assert found == {
        "cross_entropy": pytest.approx(nats, rel=1e-12),
        "bits_per_character": pytest.approx(nats / math.log(2), rel=1e-12),
        "perplexity": pytest.approx(math.exp(nats), rel=1e-12),
        "accuracy": float((rows.argmax(1) == labels).double().mean()),
    }
    assert metrics[1].compute([800.0, 1.0]) == math.exp(700)


def test_classes_that_do_not_occur_do_not_count() -> None:
    outputs, targets = torch.eye(3)[[0, 0, 1]], torch.tensor([0, 0, 0])
    balanced, f1 = metrics_of("classification", n_outputs=3)[2:]
    assert balanced.compute(balanced.update(outputs, targets).tolist()) == pytest.approx(2 / 3)
    # Class 0: 2 hits, 3 members, 2 predictions; class 1: predicted once, wrongly; class 2 never.
    assert f1.compute(f1.update(outputs, targets).tolist()) == pytest.approx((4 / 5 + 0) / 2)


def test_names() -> None:
    assert greater_is_better("accuracy")
    assert not greater_is_better("mean_squared_error")
    check_name("accuracy", task="classification")
    with pytest.raises(
        BadInput, match=r"objective\.metric: unknown metric 'acuracy': did you mean accuracy\? set one of"
    ):
        check_name("acuracy")
    with pytest.raises(BadInput, match=r"accuracy is not for regression data; set one of mean_squared_error"):
        check_name("accuracy", task="regression")


def test_names_need_no_torch() -> None:
    code = "import sys, nord_hpc.training.metrics, nord_hpc.training.checks; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"


def test_counts_are_exact_for_many_samples() -> None:
    accuracy = metrics_of("classification", n_outputs=2)[0]
    outputs = torch.eye(2)[torch.zeros(2**20, dtype=torch.long)]
    sums = accuracy.update(outputs, torch.zeros(2**20, dtype=torch.long)) * 2**12
    assert np.array_equal(sums.numpy(), [2.0**32, 2.0**32])
