"""Dense parts: what stands between the features of a network and its outputs, made for a number of features."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from nord_hpc.errors import BadInput, Infeasible

WIDEST = 1024
"""Largest width of a hidden dense layer; halving alone would give a 64 x 32 x 32 map two thousand million weights."""

Activation = nn.Module | type[nn.Module] | None
Layers = Mapping[str, nn.Module]
DensePart = Callable[[int], Layers | nn.Module] | nn.Module
"""From the number of features to layers in order, or to one module; or the module itself. It takes [N, features]."""


@dataclass(frozen=True, slots=True)
class DenseNet:
    """Dense layers of halving width, each with a ReLU, then one that gives the outputs.

    Attributes:
        layers_number: hidden layers, 0 or more.
        output_size: width of the output.
        activation: after the output; None for none.
        batch_norm: whether each hidden layer is normalized.
        widest: limit of the hidden widths.
    """

    layers_number: int
    output_size: int
    activation: Activation = None
    batch_norm: bool = False
    widest: int = WIDEST

    def __call__(self, input_size: int) -> dict[str, nn.Module]:
        layers: dict[str, nn.Module] = {}
        width = input_size
        for index in range(self.layers_number):
            narrower = max(1, min(width // 2, self.widest))
            layers[f"fc_{index}"] = nn.Linear(width, narrower)
            layers[f"relu_{index}"] = nn.ReLU()
            if self.batch_norm:
                layers[f"norm_{index}"] = nn.BatchNorm1d(narrower)
            width = narrower
        layers["fc_final"] = nn.Linear(width, self.output_size)
        if self.activation is not None:
            own = self.activation() if isinstance(self.activation, type) else copy.deepcopy(self.activation)
            layers["activation_final"] = own
        return layers


def get_dense_net(layers_number: int, output_size: int, activation: Activation = None) -> DenseNet:
    """Dense layers of halving width, each with a ReLU."""
    return DenseNet(layers_number, output_size, activation)


def get_dense_batch_net(layers_number: int, output_size: int, activation: Activation = None) -> DenseNet:
    """Dense layers of halving width, each with a ReLU and batch normalization."""
    return DenseNet(layers_number, output_size, activation, batch_norm=True)


NAMED: dict[str, Callable[[int, int, Activation], DenseNet]] = {
    "dense_net": get_dense_net,
    "dense_batch_net": get_dense_batch_net,
}
"""Names that may stand for a dense part; each has two hidden layers."""


def make_dense_part(given: str | DensePart, *, input_size: int, output_size: int) -> nn.Module:
    """The dense part as one module, for features [N, input_size].

    Raises:
        BadInput: the name is unknown, or what is given makes no layers.
        Infeasible: the module does not give [N, output_size].
    """
    if isinstance(given, str):
        if given not in NAMED:
            raise BadInput(f"dense_part: {given!r} is not a choice; set one of {', '.join(NAMED)}, or a callable")
        given = NAMED[given](2, output_size, None)
    made = given if isinstance(given, nn.Module) else given(input_size)
    if isinstance(made, Mapping):
        sequence = nn.Sequential()
        for name, layer in made.items():
            sequence.add_module(name.replace(".", "_"), layer)
        made = sequence
    if not isinstance(made, nn.Module):
        raise BadInput(f"dense_part: made {type(made).__name__}; return a dict of layers, or a module")
    _check(made, input_size=input_size, output_size=output_size)
    return made


def _check(part: nn.Module, *, input_size: int, output_size: int) -> None:
    """Send two samples through the part."""
    import torch

    was_training = part.training
    part.eval()
    try:
        with torch.no_grad():
            shape = tuple(part(torch.zeros(2, input_size)).shape)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise Infeasible(f"the dense part cannot work on {input_size} features: {reason}") from error
    finally:
        part.train(was_training)
    if shape != (2, output_size):
        raise Infeasible(f"the dense part gives {shape} for 2 samples, not (2, {output_size}); set its output size")
