"""How well zero-cost scores rank 200 random cells of NAS-Bench-201, as real networks on real images."""

from __future__ import annotations

import csv
import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from nord_hpc.builder import plan
from nord_hpc.builder.network import build
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.proxies import NAMES, SIZES, score_network

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
N_CELLS = 200
CONVOLUTIONS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no {DATA} with real data")


class Writer:
    """The benchmark's network of a cell, layer by layer."""

    def __init__(self) -> None:
        self.descriptor = NeuralDescriptor()

    def add(self, kind: str, parameters: dict[str, object], *inputs: str) -> str:
        name = self.descriptor.add_layer(kind, parameters)
        for source in inputs:
            self.descriptor.connect_layers(source, name)
        return name

    def convolution(self, source: str, channels: int, kernel: int, stride: int = 1) -> str:
        """ReLU, convolution, batch normalization."""
        parameters = {"kernel_size": kernel, "stride": stride, "padding": kernel // 2, "bias": False}
        relu = self.add("ReLU", {}, source)
        return self.add("BatchNorm2d", {}, self.add("Conv2d", {"out_channels": channels, **parameters}, relu))

    def operation(self, label: str, source: str, channels: int) -> str:
        if label in CONVOLUTIONS:
            return self.convolution(source, channels, CONVOLUTIONS[label])
        if label == "avg_pool_3x3":
            pooling = {"kernel_size": 3, "stride": 1, "padding": 1, "count_include_pad": False}
            return self.add("AvgPool2d", pooling, source)
        return self.add("ScaleLayer", {"scale": {"none": 0, "skip_connect": 1}[label]}, source)

    def cell(self, architecture: str, source: str, channels: int) -> str:
        nodes = [source]
        for part in architecture.split("+"):
            edges = [edge.split("~") for edge in part.strip("|").split("|")]
            results = [self.operation(label, nodes[int(origin)], channels) for label, origin in edges]
            nodes.append(self.add("Identity", {}, *results))
        return nodes[-1]


def network_of(architecture: str) -> NeuralDescriptor:
    """Stem, three stages of five cells with residual blocks between them, normalization and ReLU."""
    writer = Writer()
    stem = writer.add("Conv2d", {"out_channels": 16, "kernel_size": 3, "padding": 1, "bias": False})
    end = writer.add("BatchNorm2d", {}, stem)
    for channels in (16, 32, 64):
        if channels > 16:
            main = writer.convolution(writer.convolution(end, channels, 3, 2), channels, 3)
            pooled = writer.add("AvgPool2d", {"kernel_size": 2, "stride": 2}, end)
            side = writer.add("Conv2d", {"out_channels": channels, "kernel_size": 1, "bias": False}, pooled)
            end = writer.add("Identity", {}, main, side)
        for _ in range(5):
            end = writer.cell(architecture, end, channels)
    writer.add("ReLU", {}, writer.add("BatchNorm2d", {}, end))
    return writer.descriptor


def images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images of CIFAR-10, each channel normalized."""
    content = lzma.decompress((DATA / "cifar10" / "data_batch_1_first2000.bin.xz").read_bytes())
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)[:n]
    x = torch.from_numpy(records[:, 1:].astype(np.float32).reshape(-1, 3, 32, 32) / 255)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    return x, torch.from_numpy(records[:, 0].astype(np.int64))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_synflow_ranks_cells_as_their_accuracy_after_200_epochs_does(capsys: pytest.CaptureFixture[str]) -> None:
    with gzip.open(DATA / "nasbench201" / "nasbench201.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    chosen = np.random.Generator(np.random.PCG64(0)).permutation(len(rows))[:N_CELLS].tolist()
    x, y = images(32)
    scores = []
    n_like_table = 0
    for index in chosen:
        row = rows[index]
        network_plan = plan(network_of(row["arch"]), input_shape=(3, 32, 32), n_outputs=10)
        n_1x1, n_3x3 = (row["arch"].count(label) for label in CONVOLUTIONS)
        assert network_plan.n_parameters == 73_306 + 28_000 * n_1x1 + 243_040 * n_3x3
        n_like_table += network_plan.n_parameters == round(1e6 * float(row["params_m"]))
        scores.append(score_network(build(network_plan, seed=index), x, y, seed=index))
    # The table has other parameters than its architectures in one row of a hundred.
    assert n_like_table >= 0.97 * N_CELLS
    accuracy = [float(rows[index]["c10_test_200"]) for index in chosen]
    found = {name: spearmanr([score[name] for score in scores], accuracy).statistic for name in (*NAMES, *SIZES)}
    with capsys.disabled():
        print("\nSpearman's correlation with CIFAR-10 test accuracy after 200 epochs, 200 cells of NAS-Bench-201:")
        for name, value in found.items():
            print(f"  {name:<14} {value:6.3f}")
    assert found["synflow"] >= 0.6
    # All of them rank better than chance; beyond 4 standard errors of a correlation that is none.
    assert all(value > 4 / N_CELLS**0.5 for value in found.values())
