"""How each zero-cost score is computed, on a copy of the network that may be changed at will.

Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", arXiv 2101.08134, compared most of them; where the first
paper leaves a choice open, theirs is taken. Scores of gradients see matrices and kernels, the weights of convolutions
and dense layers, and neither biases nor normalizations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from nord_hpc.builder.network import Network
from nord_hpc.errors import Infeasible

JITTER = 1e-5
"""Added to eigenvalues before logarithm and inverse, as in the code of Mellor et al."""

_NORMALIZATIONS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)
_HALVES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish)
"""Activations that treat positive and negative inputs differently."""


class Example(NamedTuple):
    """One batch: x [N, ...], y [N] classes or [N, outputs] numbers."""

    x: torch.Tensor
    y: torch.Tensor


@contextmanager
def without_trace(network: Network, *, seed: int) -> Iterator[Network]:
    """A copy of a network in training mode, without gradients, and a random state that ends with the context."""
    # The plan never changes, and is large.
    copied = copy.deepcopy(network, {id(network.plan): network.plan})
    copied.train()
    copied.requires_grad_(True)
    copied.zero_grad(set_to_none=True)
    devices = [tensor.device for tensor in copied.parameters() if tensor.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(seed)
        yield copied


def synflow(network: Network, example: Example) -> float:
    """Sum of |weight x gradient| of the outputs' sum, where the absolute values of all weights meet an input of ones.

    Normalizations are left out, so that the network is linear in each weight; double precision, as the sum over paths
    outgrows single precision in deep networks. The data are not looked at. Tanaka et al., "Pruning neural networks
    without any data by iteratively conserving synaptic flow", arXiv 2006.05467.
    """
    _require_numbers(example.x, "synflow")
    network.eval()
    network.double()
    for module in network.modules():
        if isinstance(module, _NORMALIZATIONS):
            module.forward = _unchanged  # type: ignore[assignment, method-assign]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    network(torch.ones_like(example.x[:1], dtype=torch.float64)).sum().backward()
    return _sum((weight * gradient).abs() for weight, gradient in _weights_with_gradients(network))


def grad_norm(network: Network, example: Example) -> float:
    """Sum over the layers of the Euclidean norm of the loss's gradient. Abdelfattah et al., arXiv 2101.08134."""
    _loss(network, example).backward()  # type: ignore[no-untyped-call]
    return _sum(torch.linalg.vector_norm(gradient) for _, gradient in _weights_with_gradients(network))


def snip(network: Network, example: Example) -> float:
    """Sum of |weight x gradient| of the loss.

    Lee et al., "SNIP: Single-shot network pruning based on connection sensitivity", arXiv 1810.02340.
    """
    _loss(network, example).backward()  # type: ignore[no-untyped-call]
    return _sum((weight * gradient).abs() for weight, gradient in _weights_with_gradients(network))


def jacob_cov(network: Network, example: Example) -> float:
    """How little the gradients of the outputs with respect to different samples resemble each other.

    -sum(log v + 1 / v) over the eigenvalues v of the correlation of the samples' gradients; 0.00001 is added to each.
    A network whose outputs do not depend on its inputs counts as if all gradients were the same, the worst case.
    Mellor et al., "Neural Architecture Search without Training", arXiv 2006.04647, first version.
    """
    _require_numbers(example.x, "jacob_cov")
    x = example.x.detach().clone().requires_grad_(True)
    network(x).sum().backward()
    jacobian_ND = (torch.zeros_like(x) if x.grad is None else x.grad).flatten(1).double()
    centred_ND = jacobian_ND - jacobian_ND.mean(1, keepdim=True)
    norm_N1 = torch.linalg.vector_norm(centred_ND, dim=1, keepdim=True)
    unit_ND = centred_ND / norm_N1
    correlation_NN = torch.nan_to_num(unit_ND @ unit_ND.T, nan=1.0)
    v_N = torch.linalg.eigvalsh(correlation_NN).clamp(min=0.0) + JITTER
    return -float((v_N.log() + 1 / v_N).sum())


def naswot(network: Network, example: Example) -> float:
    """Logarithm of the determinant of the matrix that counts in how many activations two samples are alike.

    Each rectifier is on or off for a sample; the matrix has for each pair of samples the number of equal states, over
    all rectifiers. Eigenvalues below 0.00001 count as that, so that samples that cannot be told apart give a number.
    Mellor et al., "Neural Architecture Search without Training", ICML 2021, arXiv 2006.04647.

    Raises:
        Infeasible: the network has no activation that tells positive from negative inputs.
    """
    n = len(example.x)
    alike_NN = torch.zeros((n, n), dtype=torch.float64, device=example.x.device)
    seen = 0

    def count(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal seen
        # A count of up to 2^24 is exact in single precision; layers are added up in double.
        on_ND = (inputs[0].detach().reshape(n, -1) > 0).to(torch.float32)
        off_ND = 1 - on_ND
        alike_NN.add_((on_ND @ on_ND.T + off_ND @ off_ND.T).double())
        seen += 1

    hooks = [module.register_forward_pre_hook(count) for module in network.modules() if isinstance(module, _HALVES)]
    with torch.no_grad():
        network(example.x)
    for hook in hooks:
        hook.remove()
    if not seen:
        raise Infeasible("naswot needs activations such as ReLU, and this network has none")
    return float(torch.linalg.eigvalsh(alike_NN).clamp(min=JITTER).log().sum())


Measure = Callable[[Network, Example], float]

MEASURES: dict[str, Measure] = {
    "grad_norm": grad_norm,
    "jacob_cov": jacob_cov,
    "naswot": naswot,
    "snip": snip,
    "synflow": synflow,
}
"""Name to function; a function may change the network that it is given."""


def _require_numbers(x: torch.Tensor, name: str) -> None:
    if not x.is_floating_point():
        raise Infeasible(f"{name} needs inputs that are numbers with gradients, and these are {x.dtype} indices")


def _unchanged(x: torch.Tensor) -> torch.Tensor:
    return x


def _loss(network: Network, example: Example) -> torch.Tensor:
    """The mean loss of the batch, batch statistics of the batch itself."""
    outputs = network(example.x)
    if example.y.is_floating_point():
        return functional.mse_loss(outputs, example.y.reshape(outputs.shape))
    return functional.cross_entropy(outputs, example.y)


def _weights_with_gradients(network: Network) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Matrices and kernels with their gradients, in order; those that the output does not depend on are left out."""
    for module in network.modules():
        if isinstance(module, _NORMALIZATIONS):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.dim() > 1 and parameter.grad is not None:
                yield parameter.detach(), parameter.grad


def _sum(values: Iterator[torch.Tensor]) -> float:
    return float(sum(float(value.double().sum()) for value in values))
