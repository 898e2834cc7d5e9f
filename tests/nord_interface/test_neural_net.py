"""NeuralNet: what is built, what cannot be, and how it looks from outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matplotlib.text import Text
from torch import nn

from nord_hpc.builder import Head
from nord_hpc.configurations.dense_parts import get_dense_batch_net, get_dense_net
from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.neural_nets import NeuralDescriptor, NeuralNet


def listing() -> NeuralDescriptor:
    d = NeuralDescriptor()
    d.add_layer(nn.Conv2d, {"in_channels": 3, "out_channels": 5, "kernel_size": 5}, "conv")
    d.add_layer(nn.MaxPool2d, {"kernel_size": 2, "stride": 2}, "pool")
    d.connect_layers("conv", "pool")
    return d


def forked() -> NeuralDescriptor:
    d = listing()
    d.add_layer(nn.Conv2d, {"in_channels": 3, "out_channels": 7, "kernel_size": 3}, "side")
    d.add_layer(nn.ReLU, {}, "join")
    d.connect_layers("conv", "side")
    d.connect_layers("pool", "join")
    d.connect_layers("side", "join")
    return d


def test_parameters_by_hand() -> None:
    net = NeuralNet(listing(), 10, (32, 32), 3, dense_part=get_dense_batch_net(3, 10, nn.LogSoftmax(dim=1)))
    conv = 5 * 3 * 25 + 5
    dense = 980 * 490 + 490 + 2 * 490 + 490 * 245 + 245 + 2 * 245 + 245 * 122 + 122 + 2 * 122 + 122 * 10 + 10
    assert (net.functional, net.reason, net.n_parameters) == (True, None, conv + dense)
    outputs = net(torch.randn(4, 3, 32, 32))
    assert torch.allclose(outputs.exp().sum(1), torch.ones(4), atol=1e-5)


def test_one_descriptor_for_several_data_sets() -> None:
    for channels, shape in ((1, (28, 28)), (3, (32, 32)), (4, (9, 40))):
        assert NeuralNet(listing(), 6, shape, channels)(torch.zeros(2, channels, *shape)).shape == (2, 6)


def test_seed_and_global_generator() -> None:
    def weights(**options: int) -> torch.Tensor:
        net = NeuralNet(listing(), 10, (32, 32), 3, dense_part="dense_net", **options)  # type: ignore[arg-type]
        return nn.utils.parameters_to_vector(net.parameters())

    assert torch.equal(weights(seed=1), weights(seed=1))
    assert not torch.equal(weights(seed=1), weights(seed=2))
    torch.manual_seed(5)
    first, second = weights(), weights()
    torch.manual_seed(5)
    assert torch.equal(weights(), first)
    assert not torch.equal(first, second)


def test_what_cannot_be_built_has_a_reason() -> None:
    d = listing()
    d.disconnect_layers("conv", "pool")
    net = NeuralNet(d, 10, (32, 32), 3)
    assert not net.functional
    assert net.reason == "no path from 'conv' to 'pool'"
    assert net.plan is None and net.layers == {} and list(net.parameters()) == []
    assert set(net.to_networkx()) == {"conv", "pool"}
    with pytest.raises(Infeasible, match=r"^this network could not be built: no path from 'conv' to 'pool'$"):
        net(torch.zeros(1, 3, 32, 32))
    cycle = forked()
    cycle.connect_layers("join", "pool")
    assert NeuralNet(cycle, 10, (32, 32), 3).reason == "a cycle: 'join' -> 'pool' -> 'join'"
    flat = NeuralNet(listing(), 10, (52,), 3)
    assert flat.reason == "layer 'conv' (Conv2d) works on 2-D maps, but its input is a map of 3x52"
    wrong = NeuralNet(listing(), 10, (32, 32), 3, dense_part=get_dense_net(1, 9))
    assert wrong.reason == "the dense part gives (2, 9) for 2 samples, not (2, 10); set its output size"


def test_graph_of_the_network() -> None:
    net = NeuralNet(forked(), 10, (32, 32), 3, sort=True)
    graph = net.to_networkx()
    assert set(net.layers) == set(graph)
    assert graph.nodes["001_conv"] == {"kind": "Conv2d", "shape": (5, 28, 28), "n_parameters": 380}
    assert {"002_pool", "002_side", "003_join"} < set(graph)
    assert set(graph.predecessors("003_join")) == {"002_pool", "002_side"}
    plain = NeuralNet(forked(), 10, (32, 32), 3)
    assert {"conv", "pool", "side", "join"} < set(plain.layers)
    assert isinstance(plain.layers["side"], nn.Conv2d)


def test_untrained_layers_keep_their_weights() -> None:
    net = NeuralNet(forked(), 10, (32, 32), 3, untrained=True, dense_part=get_dense_net(1, 10))
    trainable = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert trainable and all(name.startswith("dense.") for name in trainable)
    head = NeuralNet(forked(), 10, (32, 32), 3, untrained=True)
    assert head.n_parameters == head.layers["head.linear0"].weight.numel() + 10  # type: ignore[union-attr,operator]


def test_maps_of_one_size() -> None:
    def shapes(keep: object) -> dict[str, tuple[int, ...]]:
        net = NeuralNet(forked(), 10, (32, 32), 3, keep_dimensions=keep)  # type: ignore[arg-type]
        assert net.functional, net.reason
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        return {name: data["shape"] for name, data in net.to_networkx().nodes(data=True) if "head" not in name}

    assert shapes(None)["join"] == (7, 14, 14)
    sized = shapes(32)
    assert sized["conv resized"] == (5, 32, 32)
    assert sized["pool"] == (5, 16, 16)
    assert sized["join"] == (7, 32, 32)
    assert shapes((20, 24))["join"] == (7, 20, 24)
    padded = shapes([nn.Conv2d])
    assert (padded["conv"], padded["side"], padded["pool"]) == ((5, 32, 32), (7, 32, 32), (5, 16, 16))
    with pytest.raises(BadInput, match=r"keep_dimensions: 'MaxPool2d' has no padding that keeps the size; set any of"):
        shapes(["MaxPool2d"])


def test_descriptor_is_not_changed() -> None:
    d = forked()
    text = repr(d)
    net = NeuralNet(d, 10, (32, 32), 3, sort=True, keep_dimensions=16)
    assert repr(d) == text
    d.add_layer_sequential(nn.Tanh, {})
    assert repr(net.descriptor) == text


def test_heads_of_the_builder() -> None:
    for head in (Head(layers=(6,)), {"layers": [6]}):
        net = NeuralNet(listing(), 10, (32, 32), 3, dense_part=head)
        assert net.layers["head.linear0"].out_features == 6  # type: ignore[union-attr]


@pytest.mark.parametrize("kinds", [(nn.Conv2d, nn.ReLU, nn.Tanh), ("Conv2d", "ReLU", "Tanh")])
def test_layers_by_class_or_name_with_names_of_any_text(kinds: tuple[Any, ...]) -> None:
    """A kernel larger than the map, activations that would work in place, and names that torch has or cannot have."""
    conv, relu, tanh = kinds
    d, odd = NeuralDescriptor(), "a.b/c[0] \n\t✓ 'x\""
    d.add_layer(conv, {"out_channels": 4, "kernel_size": 11}, odd)
    d.add_layer(relu, {"inplace": True}, "")
    d.add_layer(tanh, None, "weights")
    d.add_layer("Identity", None, "forward", join="concat")
    for source, target in ((odd, ""), (odd, "weights"), ("", "forward"), ("weights", "forward")):
        d.connect_layers(source, target)
    net = NeuralNet(
        d, 3, (6, 6), 2, seed=1, dense_part=lambda n: {"x": nn.Linear(n, 5), "y": nn.ReLU(True), "z": nn.Linear(5, 3)}
    )
    assert net.functional and list(net.layers) == [odd, "", "weights", "forward"]
    assert net.plan is not None and "kernel 11x11 clamped to 6x6" in net.plan.notes[0]
    assert net.n_parameters == (2 * 36 * 4 + 4) + (8 * 5 + 5) + (5 * 3 + 3)
    x = torch.randn(2, 2, 6, 6)
    before = x.clone()
    outputs = net(x)
    assert torch.equal(outputs, net(x)) and torch.equal(x, before)
    convolved = net.layers[odd](x)
    joined = torch.cat([convolved.clamp_min(0), convolved.tanh()], 1).flatten(1)  # tanh sees negative values
    assert net.dense is not None and torch.allclose(outputs, net.dense(joined))


def test_pictures() -> None:
    def texts(net: NeuralNet, title: str | None = None) -> str:
        figure = net.plot(title)
        return "\n".join(text.get_text() for text in figure.findobj(Text))

    built = texts(NeuralNet(forked(), 10, (32, 32), 3), "two ways")
    assert "two ways, specification: 4 layers" in built and "two ways, realization: 3×32×32 to 10, " in built  # noqa: RUF001
    assert built.index("specification") < built.index("realization")
    assert "5×28×28" in built  # noqa: RUF001
    assert "SizeScale" in texts(NeuralNet(forked(), 10, (32, 32), 3, keep_dimensions=16))
    broken = listing()
    broken.disconnect_layers("conv", "pool")
    assert "specification: 2 layers" in texts(NeuralNet(broken, 10, (32, 32), 3))
