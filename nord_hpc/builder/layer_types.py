"""Layer classes by what they do, for code that chooses among them; what each costs is left to `operations`."""

from __future__ import annotations

from torch import nn

from nord_hpc.builder.scaling_layers import Conv2d151, ScaleLayer, SizeScaleLayer

Identity = nn.Identity
Flatten = nn.Flatten

_ACTIVATIONS = (
    "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish PReLU RReLU ReLU "
    "ReLU6 SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink Softsign Tanh Tanhshrink Threshold"
)
_POOLING = (
    "AdaptiveAvgPool{n}d AdaptiveMaxPool{n}d AvgPool{n}d FractionalMaxPool{n}d LPPool{n}d MaxPool{n}d MaxUnpool{n}d"
)


def _classes(names: str) -> list[type[nn.Module]]:
    """Those of these names that torch has; "{n}" stands for 1, 2 and 3."""
    found: list[type[nn.Module]] = []
    for name in names.split():
        for n in (1, 2, 3) if "{n}" in name else (0,):
            cls = getattr(nn, name.format(n=n), None)
            if cls is not None:
                found.append(cls)
    return found


types_dict: dict[str, list[type[nn.Module]]] = {
    "convolutions": [*_classes("Conv{n}d ConvTranspose{n}d"), Conv2d151],
    "activations": _classes(_ACTIVATIONS),
    "pooling": _classes(_POOLING),
    "normalization": _classes("BatchNorm{n}d InstanceNorm{n}d GroupNorm LayerNorm"),
    "dropout": _classes("Dropout Dropout{n}d AlphaDropout"),
    "linear": _classes("Linear"),
    "flatten": [Flatten],
    "identity": [Identity],
    "scaling": [ScaleLayer, SizeScaleLayer],
}
"""What a layer does to the classes that do it."""


def find_layer_type(layer: type[nn.Module]) -> str | None:
    """The key of `types_dict` that has this class; None where none has."""
    return next((key for key, classes in types_dict.items() if layer in classes), None)


__all__ = ["Conv2d151", "Flatten", "Identity", "ScaleLayer", "SizeScaleLayer", "find_layer_type", "types_dict"]
