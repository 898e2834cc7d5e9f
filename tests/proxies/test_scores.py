"""Zero-cost scores: each against a formula worked out without it, and what a scoring leaves behind."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from nord_hpc import proxies
from nord_hpc.builder import plan
from nord_hpc.builder.network import Network, build
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.proxies import NAMES, score_network

CONVOLUTION = {"out_channels": 3, "kernel_size": 3, "padding": 1, "bias": False}


def network_of(
    *layers: tuple[str, dict[str, Any]], input_shape: tuple[int, ...], n_outputs: int | None = 2, seed: int = 0
) -> Network:
    descriptor = NeuralDescriptor()
    for kind, parameters in layers:
        descriptor.add_layer_sequential(kind, parameters)
    return build(plan(descriptor, input_shape=input_shape, n_outputs=n_outputs), seed=seed)


def weights_of(network: Network) -> dict[str, np.ndarray]:
    return {name: tensor.detach().double().numpy() for name, tensor in network.state_dict().items()}


def batch(shape: tuple[int, ...], *, n: int = 12, n_outputs: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn((n, *shape), generator=generator), torch.randint(n_outputs, (n,), generator=generator)


def deep(seed: int = 0) -> Network:
    layers = [("Conv2d", CONVOLUTION), ("BatchNorm2d", {}), ("ReLU", {}), ("Dropout", {"p": 0.3})]
    return network_of(*layers, ("Conv2d", CONVOLUTION), ("ReLU", {}), input_shape=(2, 5, 5), seed=seed)


def test_synflow_is_the_flow_through_all_paths_once_for_each_layer() -> None:
    x, y = batch((4,))
    network = network_of(("Linear", {"out_features": 3}), ("ReLU", {}), input_shape=(4,))
    first, bias, second, _ = (np.abs(value) for value in weights_of(network).values())
    ones = np.ones(4)
    # Each layer's share: what flows through its weights; the first layer's bias flows through the second alone.
    expected = (second @ first @ ones).sum() + (second @ (first @ ones + bias)).sum()
    assert score_network(network, x, y, ["synflow"])["synflow"] == pytest.approx(expected, rel=1e-12)
    assert score_network(network, -3 * x, y, ["synflow"])["synflow"] == pytest.approx(expected, rel=1e-12)


def test_synflow_does_not_see_normalizations() -> None:
    x, y = batch((2, 5, 5))
    plain = network_of(("Conv2d", CONVOLUTION), ("ReLU", {}), input_shape=(2, 5, 5))
    normalized = network_of(("Conv2d", CONVOLUTION), ("BatchNorm2d", {}), ("ReLU", {}), input_shape=(2, 5, 5))
    normalized.load_state_dict(_moved(plain), strict=False)
    with torch.no_grad():
        for name, buffer in normalized.named_buffers():
            if buffer.is_floating_point():
                buffer.fill_(7.0 if "mean" in name else 0.1)
    scores = [score_network(network, x, y, ["synflow"])["synflow"] for network in (plain, normalized)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-12)


def _moved(plain: Network) -> dict[str, torch.Tensor]:
    """The weights of a network without normalization under the names that they have with one behind layer 0."""
    return {
        (name if name.startswith("layer0.") else f"layer{int(name[5]) + 1}{name[6:]}"): value
        for name, value in plain.state_dict().items()
    }


def test_gradient_scores_are_those_of_a_softmax_regression() -> None:
    x, y = batch((4,), n_outputs=3)
    network = network_of(("Identity", {}), input_shape=(4,), n_outputs=3)
    weight, bias = weights_of(network).values()
    logits = x.double().numpy() @ weight.T + bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = (p - np.eye(3)[y.numpy()]).T @ x.double().numpy() / len(x)
    scores = score_network(network, x, y, ["grad_norm", "snip"])
    assert scores["grad_norm"] == pytest.approx(np.sqrt((gradient**2).sum()), rel=1e-5)
    assert scores["snip"] == pytest.approx(np.abs(weight * gradient).sum(), rel=1e-5)


def test_numbers_to_predict_have_a_squared_loss() -> None:
    x, _ = batch((4,))
    y = x[:, :2] * 2
    network = network_of(("Identity", {}), input_shape=(4,))
    weight, bias = weights_of(network).values()
    residual = x.double().numpy() @ weight.T + bias - y.double().numpy()
    gradient = 2 * residual.T @ x.double().numpy() / residual.size
    assert score_network(network, x, y, ["snip"])["snip"] == pytest.approx(np.abs(weight * gradient).sum(), rel=1e-5)


def test_jacob_cov_is_that_of_the_correlations_of_the_samples_gradients() -> None:
    x, y = batch((2, 5, 5))
    network = network_of(
        ("Conv2d", CONVOLUTION), ("ReLU", {}), ("Conv2d", CONVOLUTION), ("ReLU", {}), input_shape=(2, 5, 5)
    )
    rows = [
        torch.autograd.functional.jacobian(lambda z: network(z).sum(), sample[None]).flatten().double().numpy()
        for sample in x
    ]
    v = np.linalg.eigvalsh(np.corrcoef(np.stack(rows))) + 1e-5
    expected = -(np.log(v) + 1 / v).sum()
    assert score_network(network, x, y, ["jacob_cov"])["jacob_cov"] == pytest.approx(expected, rel=1e-4)


def test_networks_that_treat_all_samples_alike_have_the_worst_jacob_cov() -> None:
    x, y = batch((4,), n=6)
    linear = network_of(("Linear", {"out_features": 3}), input_shape=(4,))
    eigenvalues = [6 + 1e-5] + [1e-5] * 5
    worst = -sum(math.log(v) + 1 / v for v in eigenvalues)
    assert score_network(linear, x, y, ["jacob_cov"])["jacob_cov"] == pytest.approx(worst, rel=1e-6)
    dead = network_of(("Linear", {"out_features": 3}), input_shape=(4,))
    with torch.no_grad():
        for parameter in dead.parameters():
            parameter.zero_()
    assert score_network(dead, x, y, ["jacob_cov"])["jacob_cov"] == pytest.approx(worst, rel=1e-6)


def test_naswot_counts_rectifiers_in_equal_states() -> None:
    network = network_of(("ReLU", {}), input_shape=(4,))
    x = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, 2.0, -3.0, 4.0]])
    y = torch.tensor([0, 1])
    # Three of four alike: the determinant of [[4, 3], [3, 4]] is 7.
    assert score_network(network, x, y, ["naswot"])["naswot"] == pytest.approx(math.log(7))
    # Samples that cannot be told apart have determinant 0, and the smallest number that counts stands in for it.
    same = score_network(network, torch.stack([x[0], 2 * x[0]]), y, ["naswot"])["naswot"]
    assert same == pytest.approx(math.log(8) + math.log(1e-5))


def test_a_scoring_leaves_no_trace_and_repeats() -> None:
    x, y = batch((2, 5, 5))
    network = deep()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = score_network(network, x, y, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert network.training
    torch.manual_seed(4)
    assert score_network(network, x, y, seed=1) == first
    # In another order and company each is the same.
    for name in reversed(NAMES):
        assert score_network(network, x, y, [name], seed=1)[name] == first[name]


def test_the_seed_is_that_of_dropout_which_synflow_does_not_have() -> None:
    x, y = batch((2, 5, 5))
    first, second = (score_network(deep(), x, y, seed=seed) for seed in (1, 2))
    changed = {name for name in NAMES if first[name] != second[name]}
    assert changed == {"grad_norm", "jacob_cov", "naswot", "snip"}
    other = score_network(deep(seed=1), x, y, seed=1)
    assert all(other[name] != first[name] for name in NAMES)


def test_sizes_stand_beside_every_score() -> None:
    x, y = batch((2, 5, 5))
    scores = score_network(deep(), x, y, ["snip", "snip"])
    assert list(scores) == ["snip", "n_parameters", "multiply_adds"]
    n_parameters = 9 * 2 * 3 + 6 + 9 * 3 * 3 + 3 * 2 + 2
    multiply_adds = 25 * (9 * 2 * 3 + 9 * 3 * 3) + 3 * 2
    assert (scores["n_parameters"], scores["multiply_adds"]) == (n_parameters, multiply_adds)
    assert all(isinstance(value, float) for value in scores.values())


def test_what_has_no_score_is_refused() -> None:
    x, y = batch((4,))
    network = network_of(("Linear", {"out_features": 3}), input_shape=(4,))
    with pytest.raises(
        ValueError, match="unknown score 'fisher': set any of grad_norm, jacob_cov, naswot, snip, synflow"
    ):
        score_network(network, x, y, ["fisher"])
    with pytest.raises(Infeasible, match="naswot needs activations such as ReLU, and this network has none"):
        score_network(network, x, y, ["naswot"])
    for name in ("synflow", "jacob_cov"):
        with pytest.raises(Infeasible, match=rf"{name} needs inputs that are numbers with gradients"):
            score_network(network, x.long(), y, [name])


def test_each_score_names_its_paper() -> None:
    from nord_hpc.proxies.measures import MEASURES

    assert tuple(MEASURES) == proxies.NAMES
    for measure in MEASURES.values():
        assert re.search(r"arXiv\s\d{4}\.\d{5}", measure.__doc__ or ""), measure
