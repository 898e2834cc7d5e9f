"""Dense parts: widths, layers, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nord_hpc.configurations.dense_parts import get_dense_batch_net, get_dense_net
from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.scripting.dense_parts import make_dense_part


def widths(layers: dict[str, nn.Module]) -> list[tuple[int, int]]:
    return [(layer.in_features, layer.out_features) for layer in layers.values() if isinstance(layer, nn.Linear)]


def test_widths_halve() -> None:
    layers = get_dense_net(3, 10, nn.LogSoftmax(dim=1))(980)
    assert widths(layers) == [(980, 490), (490, 245), (245, 122), (122, 10)]
    assert list(layers) == ["fc_0", "relu_0", "fc_1", "relu_1", "fc_2", "relu_2", "fc_final", "activation_final"]
    normed = get_dense_batch_net(1, 4, None)(6)
    assert list(normed) == ["fc_0", "relu_0", "norm_0", "fc_final"]


def test_extremes() -> None:
    assert widths(get_dense_net(0, 3)(8)) == [(8, 3)]
    assert widths(get_dense_net(3, 3)(2)) == [(2, 1), (1, 1), (1, 1), (1, 3)]
    assert widths(get_dense_net(2, 3)(64 * 32 * 32)) == [(65536, 1024), (1024, 512), (512, 3)]


def test_activations_are_not_shared() -> None:
    part = get_dense_net(1, 3, nn.PReLU())
    first, second = part(4), part(4)
    assert first["activation_final"] is not second["activation_final"]
    assert isinstance(get_dense_net(1, 3, nn.Tanh)(4)["activation_final"], nn.Tanh)


def test_names_callables_and_modules() -> None:
    assert make_dense_part("dense_net", input_size=8, output_size=3)(torch.zeros(1, 8)).shape == (1, 3)
    assert len(make_dense_part("dense_batch_net", input_size=8, output_size=3)) == 7  # type: ignore[arg-type]
    module = nn.Linear(8, 3)
    assert make_dense_part(module, input_size=8, output_size=3) is module
    assert isinstance(make_dense_part(lambda n: nn.Linear(n, 3), input_size=8, output_size=3), nn.Linear)
    with pytest.raises(BadInput, match=r"dense_part: 'dense' is not a choice; set one of dense_net, dense_batch_net"):
        make_dense_part("dense", input_size=8, output_size=3)
    with pytest.raises(BadInput, match=r"dense_part: made int; return a dict of layers, or a module"):
        make_dense_part(lambda n: n, input_size=8, output_size=3)  # type: ignore[arg-type,return-value]
    with pytest.raises(Infeasible, match=r"gives \(2, 4\) for 2 samples, not \(2, 3\); set its output size"):
        make_dense_part(get_dense_net(1, 4), input_size=8, output_size=3)
    with pytest.raises(Infeasible, match=r"the dense part cannot work on 8 features: mat1 and mat2 shapes"):
        make_dense_part(nn.Linear(9, 3), input_size=8, output_size=3)
