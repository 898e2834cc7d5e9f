"""The table of operations: for each kind of layer its rule of inference, the class that makes it, and its parameters.

To add a kind is one line here, where a rule of `shapes` fits it. Classes outside the table are left to `custom`.
"""

from __future__ import annotations

from dataclasses import dataclass

from nord_hpc.builder import sequence_shapes, shapes
from nord_hpc.builder.shapes import Rule


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of layer.

    Attributes:
        rule: infers shape, parameters and multiply-adds.
        factory: the class that makes it, as "module:Class"; called with the completed parameters.
        accepts: names of the parameters that a descriptor may give. Those that are inferred are overridden.
    """

    rule: Rule
    factory: str
    accepts: frozenset[str]


def _operation(kind: str, rule: Rule, accepts: str = "", *, module: str = "torch.nn") -> tuple[str, Operation]:
    return kind, Operation(rule, f"{module}:{kind}", frozenset(accepts.split()))


_OWN = "nord_hpc.builder.layers"
_RECURRENT = "nord_hpc.builder.recurrent"
_SCALING = "nord_hpc.builder.scaling_layers"
_WINDOW = "kernel_size stride padding dilation"
_NORM = "num_features eps momentum affine track_running_stats"
_ACTIVATIONS = {
    "CELU": "alpha inplace",
    "ELU": "alpha inplace",
    "GELU": "approximate",
    "Hardsigmoid": "inplace",
    "Hardswish": "inplace",
    "Hardtanh": "min_val max_val inplace",
    "LeakyReLU": "negative_slope inplace",
    "LogSigmoid": "",
    "Mish": "inplace",
    "ReLU": "inplace",
    "ReLU6": "inplace",
    "SELU": "inplace",
    "SiLU": "inplace",
    "Sigmoid": "",
    "Softplus": "beta threshold",
    "Softsign": "",
    "Tanh": "",
    "Tanhshrink": "",
}

OPERATIONS: dict[str, Operation] = dict(
    [
        *(_operation(kind, shapes.same_shape, accepts) for kind, accepts in _ACTIVATIONS.items()),
        *(_operation(f"AdaptiveAvgPool{n}d", shapes.adaptive_pool(n), "output_size") for n in (1, 2, 3)),
        *(_operation(f"AdaptiveMaxPool{n}d", shapes.adaptive_pool(n), "output_size return_indices") for n in (1, 2, 3)),
        *(
            _operation(
                f"AvgPool{n}d",
                shapes.average_pool(n),
                "kernel_size stride padding ceil_mode count_include_pad" + (" divisor_override" if n > 1 else ""),
            )
            for n in (1, 2, 3)
        ),
        *(_operation(f"BatchNorm{n}d", shapes.batch_norm(n), _NORM) for n in (1, 2, 3)),
        *(
            _operation(
                f"Conv{n}d", shapes.convolution(n), f"in_channels out_channels {_WINDOW} groups bias padding_mode"
            )
            for n in (1, 2, 3)
        ),
        _operation("Conv2d151", shapes.convolution_151, "in_channels out_channels stride kernel_size", module=_SCALING),
        _operation("Dropout", shapes.dropout, "p inplace"),
        *(_operation(f"Dropout{n}d", shapes.map_dropout(n), "p inplace") for n in (1, 2, 3)),
        _operation("Embedding", sequence_shapes.embedding, "num_embeddings embedding_dim", module=_RECURRENT),
        _operation("FirstChannels", shapes.first_channels, "channels", module=_OWN),
        _operation("Flatten", shapes.flatten, "start_dim end_dim"),
        _operation("GroupNorm", shapes.group_norm, "num_groups num_channels eps affine"),
        _operation("Identity", shapes.same_shape),
        ("Input", Operation(shapes.same_shape, "torch.nn:Identity", frozenset())),
        *(_operation(f"InstanceNorm{n}d", shapes.instance_norm(n), _NORM) for n in (1, 2, 3)),
        _operation("LayerNorm", shapes.layer_norm, "normalized_shape eps elementwise_affine bias"),
        _operation("Linear", shapes.linear, "in_features out_features bias"),
        *(_operation(f"MaxPool{n}d", shapes.max_pool(n), f"{_WINDOW} return_indices ceil_mode") for n in (1, 2, 3)),
        ("Output", Operation(shapes.same_shape, "torch.nn:Identity", frozenset())),
        _operation("PReLU", shapes.prelu, "num_parameters init"),
        _operation(
            "PositionLinear",
            sequence_shapes.position_linear,
            "in_features out_features bias tied",
            module=_RECURRENT,
        ),
        _operation("RecurrentCell", sequence_shapes.recurrent_cell, "input_size hidden_size cell", module=_RECURRENT),
        _operation("ScaleLayer", shapes.same_shape, "scale", module=_SCALING),
        *(
            _operation(
                f"SeparableConv{n}d",
                shapes.separable_convolution(n),
                f"in_channels out_channels {_WINDOW} bias",
                module=_OWN,
            )
            for n in (1, 2, 3)
        ),
        _operation("SizeScaleLayer", shapes.size_scale, "final_size", module=_SCALING),
    ]
)
"""Kind to operation."""
