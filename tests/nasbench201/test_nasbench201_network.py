"""The whole networks of the cells of NAS-Bench-201: parameters, multiply-adds, and the way back."""

from __future__ import annotations

import pytest
import torch
from nasbench201_example import FIRST, needs_table, table_rows

from nord_hpc.builder import plan
from nord_hpc.builder.network import build
from nord_hpc.errors import Infeasible
from nord_hpc.nasbench201 import (
    N_CELLS,
    cell_of,
    cell_of_index,
    count_multiply_adds,
    count_parameters,
    from_network,
    network_descriptor,
    to_descriptor,
)

DENSE_BIAS = 10
"""Multiply-adds that the benchmark counts for it and the builder does not."""


@needs_table
def test_sizes_are_the_tables() -> None:
    rows = table_rows()
    cells = [cell_of_index(index) for index in range(N_CELLS)]
    for cell, row in zip(cells, rows, strict=True):
        assert count_multiply_adds(cell) == pytest.approx(1e6 * float(row["flops_m"]), abs=6)
    differing = [
        index for index, row in enumerate(rows) if count_parameters(cells[index]) != round(1e6 * float(row["params_m"]))
    ]
    # The table gives 150 cells the parameters of others; its flops, which follow from the text, differ in none.
    assert len(differing) == 150
    # The parameters follow from the convolutions; those rows have others than most with the same convolutions.
    of_counts: dict[tuple[int, int], list[str]] = {}
    for cell, row in zip(cells, rows, strict=True):
        of_counts.setdefault((cell.count("nor_conv_1x1"), cell.count("nor_conv_3x3")), []).append(row["params_m"])
    for (n_1x1, n_3x3), found in of_counts.items():
        usual = max(set(found), key=found.count)
        assert round(1e6 * float(usual)) == 73_306 + 28_000 * n_1x1 + 243_040 * n_3x3


def test_the_builder_finds_the_same_sizes() -> None:
    for index in (0, 1, 11, 284, 1462, 13714):
        cell = cell_of_index(index)
        made = plan(network_descriptor(cell), input_shape=(3, 32, 32), n_outputs=10)
        assert made.n_parameters == count_parameters(cell)
        assert made.multiply_adds == count_multiply_adds(cell) - DENSE_BIAS
    made = plan(network_descriptor(cell, stem_channels=4, stages=2, cells=1), input_shape=(1, 8, 8), n_outputs=7)
    sizes = {"n_outputs": 7, "image_channels": 1, "stem_channels": 4, "stages": 2, "cells": 1}
    assert made.n_parameters == count_parameters(cell, **sizes)
    assert made.multiply_adds == count_multiply_adds(cell, image_size=8, **sizes) - 7


def test_the_network_computes_what_the_cell_says() -> None:
    """Without convolutions a cell is linear: the sum over its ways, each a number of poolings."""
    small = {"stem_channels": 4, "stages": 1, "cells": 1}
    x = torch.linspace(-1, 2, 2 * 3 * 64).sin().view(2, 3, 8, 8)

    def output_of(text: str) -> torch.Tensor:
        """What the cell gives, which is what the last normalization gets."""
        made = plan(network_descriptor(cell_of(text), **small), input_shape=(3, 8, 8), n_outputs=10)
        network = build(made, seed=0).eval()
        norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        taken = []
        norms[-1].register_forward_hook(lambda _module, inputs, _output: taken.append(inputs[0]))
        stem = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
        with torch.no_grad():
            stem.weight.copy_(torch.linspace(-1, 1, stem.weight.numel()).view_as(stem.weight))
            network(x)
        return taken[0]

    def pooled(values: torch.Tensor, times: int) -> torch.Tensor:
        for _ in range(times):
            values = torch.nn.functional.avg_pool2d(values, 3, 1, 1, count_include_pad=False)
        return values

    straight = output_of("|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|")
    found = output_of("|avg_pool_3x3~0|+|skip_connect~0|skip_connect~1|+|none~0|avg_pool_3x3~1|skip_connect~2|")
    # 0-1-3: two poolings; 0-2-3: none; 0-1-2-3: one.
    expected = sum(pooled(straight, times) for times in (2, 0, 1))
    torch.testing.assert_close(found, expected)


def test_every_network_gives_its_cell_back() -> None:
    for index in range(0, N_CELLS, 1501):
        cell = cell_of_index(index)
        assert from_network(network_descriptor(cell)) == cell
    small = network_descriptor(cell, stem_channels=4, stages=2, cells=1)
    assert from_network(small, stem_channels=4, stages=2, cells=1) == cell
    with pytest.raises(Infeasible, match="this is no network of NAS-Bench-201 with 16 channels in the stem, 3 stages"):
        from_network(small)
    with pytest.raises(Infeasible, match="this is no network of NAS-Bench-201"):
        from_network(to_descriptor(cell_of(FIRST)))
