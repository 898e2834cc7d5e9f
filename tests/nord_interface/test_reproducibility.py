"""assure_reproducibility: all is seeded, and evaluations agree to the bit; gangs are tested with Environment."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from small_data import blobs
from torch import nn, optim

from nord_hpc.neural_nets import LocalEvaluator, NeuralDescriptor, NeuralNet
from nord_hpc.scripting.configs import Configs
from nord_hpc.utils import assure_reproducibility


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    before = (
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, workspace = before
    if workspace is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_every_generator_is_seeded() -> None:
    def draws() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    assure_reproducibility(3)
    first = draws()
    assert draws() != first
    assure_reproducibility(3)
    assert draws() == first
    assure_reproducibility()
    zero = draws()
    assert all(a != b for a, b in zip(zero, first, strict=True))
    assure_reproducibility(seed=0)
    assert draws() == zero


def test_deterministic_kernels_alone() -> None:
    threads = torch.get_num_threads()
    assure_reproducibility()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert torch.get_num_threads() == threads


def test_evaluations_agree_to_the_bit(conf: Configs) -> None:
    conf.add_classification_dataset("rows", 3, (6, 6), 1, blobs)
    d = NeuralDescriptor()
    d.add_layer_sequential(nn.Conv2d, {"out_channels": 4, "kernel_size": 3})
    d.add_layer_sequential(nn.BatchNorm2d, {})
    d.add_layer_sequential(nn.Dropout, {"p": 0.3})

    def once(seed: int) -> tuple[float, dict[str, float], bytes]:
        assure_reproducibility(seed)
        net = NeuralNet(d, 3, (6, 6), 1, dense_part="dense_batch_net")
        loss, metrics, _ = LocalEvaluator(optim.Adam, {}, configs=conf, batch_size=32).net_evaluate(
            net, 3, dataset="rows"
        )
        return loss, metrics, b"".join(value.numpy().tobytes() for value in net.state_dict().values())

    assert once(1) == once(1)
    assert once(1)[2] != once(2)[2]
