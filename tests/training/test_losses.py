"""Losses by name and by callable, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from nord_hpc.errors import BadInput
from nord_hpc.training.data import PADDING
from nord_hpc.training.losses import LOSSES, LossMetric, loss_sum


def logits() -> torch.Tensor:
    return torch.randn((12, 4), generator=torch.Generator().manual_seed(1))


LABELS = torch.arange(12) % 4
ONE_HOT = functional.one_hot(LABELS, 4).float()


def test_named_losses_are_means_times_samples() -> None:
    x, y = logits(), logits().flip(0)
    expected = {
        "cross_entropy": (nn.CrossEntropyLoss(), LABELS),
        "one_hot_cross_entropy": (lambda a, b: functional.cross_entropy(a, b.argmax(1)), ONE_HOT),
        "kl_divergence": (
            lambda a, b: functional.kl_div(a.log_softmax(1), b, reduction="batchmean"),
            y.softmax(1),
        ),
        "mean_squared_error": (nn.MSELoss(), y),
        "mean_absolute_error": (nn.L1Loss(), y),
    }
    assert {*expected, "token_cross_entropy"} == set(LOSSES)
    for name, (reference, targets) in expected.items():
        assert loss_sum(name)(x, targets) / 12 == pytest.approx(float(reference(x, targets)), rel=1e-5), name


def test_the_loss_of_tokens_is_the_sum_over_samples_of_means_over_places() -> None:
    torch.manual_seed(0)
    x_BVT, y_BT = torch.randn(3, 5, 4), torch.randint(0, 5, (3, 4), dtype=torch.int32)
    found = loss_sum("token_cross_entropy")(x_BVT, y_BT)
    assert float(found) / 3 == pytest.approx(float(functional.cross_entropy(x_BVT, y_BT.long())), rel=1e-6)
    y_BT[2, 1:] = PADDING
    places = [(b, t) for b in range(3) for t in range(4 if b < 2 else 1)]
    losses = [float(functional.cross_entropy(x_BVT[b, :, t], y_BT[b, t].long())) for b, t in places]
    assert float(loss_sum("token_cross_entropy")(x_BVT, y_BT)) == pytest.approx(sum(losses) / 4, rel=1e-6)


def test_labels_and_one_hot_targets_are_alike() -> None:
    x = logits()
    plain = loss_sum("cross_entropy")(x, LABELS)
    for name, targets in (
        ("one_hot_cross_entropy", LABELS),
        ("one_hot_cross_entropy", ONE_HOT),
        ("kl_divergence", LABELS),
        ("kl_divergence", ONE_HOT),
    ):
        assert torch.allclose(loss_sum(name)(x, targets), plain), name


def test_log_probabilities_count_as_logits() -> None:
    x = logits()
    for name in ("cross_entropy", "kl_divergence"):
        assert torch.allclose(loss_sum(name)(x.log_softmax(1), LABELS), loss_sum(name)(x, LABELS)), name


def test_callables() -> None:
    x = logits()
    plain = float(loss_sum("cross_entropy")(x, LABELS))
    for given in (
        nn.CrossEntropyLoss,
        nn.CrossEntropyLoss(),
        functional.cross_entropy,
        nn.CrossEntropyLoss(reduction="none"),
    ):
        assert float(loss_sum(given)(x, LABELS)) == pytest.approx(plain, rel=1e-6)
    assert loss_sum(nn.KLDivLoss) is LOSSES["kl_divergence"]
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert float(loss_sum(weighted)(x, LABELS)) == pytest.approx(12 * float(weighted(x, LABELS)))


def test_what_is_no_loss() -> None:
    with pytest.raises(BadInput, match=r"criterion: unknown loss 'crossentropy': did you mean cross_entropy\? set one"):
        loss_sum("crossentropy")
    with pytest.raises(BadInput, match=r"criterion: gave \(12, 4\); return a scalar tensor, the mean over the samples"):
        loss_sum(lambda outputs, targets: outputs)(logits(), LABELS)
    with pytest.raises(BadInput, match=r"criterion: gave float; return a scalar tensor"):
        loss_sum(lambda outputs, targets: 1.0)(logits(), LABELS)


def test_loss_as_a_metric_adds_up_over_batches() -> None:
    metric, x = LossMetric(loss_sum("cross_entropy")), logits()
    whole = metric.update(x, LABELS)
    assert torch.allclose(metric.update(x[:5], LABELS[:5]) + metric.update(x[5:], LABELS[5:]), whole)
    assert metric.compute(whole.tolist()) == pytest.approx(float(functional.cross_entropy(x, LABELS)), rel=1e-6)
