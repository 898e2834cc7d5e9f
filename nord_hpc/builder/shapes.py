"""Rules of inference, one for each family of layers: parameters completed, output shape, parameters and multiply-adds.

Shapes are without the batch: (C,) for vectors, (C, L), (C, H, W) or (C, D, H, W) for maps. Multiply-adds are those of
one sample's forward pass in convolutions, dense layers and projections; all other work counts as none. What an
operation is called and which class makes it stands in `operations`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple, NoReturn

from nord_hpc.errors import Infeasible
from nord_hpc.trial import Json

Shape = tuple[int, ...]
Parameters = Mapping[str, Json]


class Site(NamedTuple):
    """Where a rule is applied, for its error texts."""

    layer: str
    kind: str

    def refuse(self, reason: str) -> NoReturn:
        raise Infeasible(f"layer {self.layer!r} ({self.kind}) {reason}", layer=self.layer)


class Inferred(NamedTuple):
    """What a rule finds out.

    Attributes:
        parameters: all that the class is made with.
        output_shape: without the batch.
        n_parameters: trainable ones.
        multiply_adds: of one sample, forward.
        flatten: whether the input is flattened to a vector before the layer.
        note: what the layer does differently from what was asked, by rule.
        n_inner_values: numbers of one sample that the backward pass keeps inside the layer, beside its output.
    """

    parameters: dict[str, Json]
    output_shape: Shape
    n_parameters: int = 0
    multiply_adds: int = 0
    flatten: bool = False
    note: str | None = None
    n_inner_values: int = 0


Rule = Callable[[Site, Parameters, Shape], Inferred]


def describe(shape: Shape) -> str:
    """A shape in words: "a vector of 10", "a map of 3x32x32"."""
    return f"a vector of {shape[0]}" if len(shape) == 1 else f"a map of {'x'.join(map(str, shape))}"


def same_shape(site: Site, given: Parameters, shape: Shape) -> Inferred:
    """Activations, dropout, identity: parameters as given, but never in place, as the input may feed other layers."""
    return Inferred({key: value for key, value in given.items() if key != "inplace"}, shape)


def dropout(site: Site, given: Parameters, shape: Shape) -> Inferred:
    """Dropout of single values."""
    probability = given.get("p", 0.5)
    if not isinstance(probability, (int, float)) or not 0 <= probability < 1:
        site.refuse(f"needs p from 0 to below 1, not {probability!r}")
    return Inferred({"p": probability}, shape)


def map_dropout(dims: int) -> Rule:
    """Dropout of whole channels of `dims`-dimensional maps."""

    def rule(site: Site, given: Parameters, shape: Shape) -> Inferred:
        require_map(site, shape, dims)
        return dropout(site, given, shape)

    return rule


def prelu(site: Site, given: Parameters, shape: Shape) -> Inferred:
    """PReLU with one slope, or one for each channel."""
    slopes = positive(site, given, "num_parameters", 1)
    if slopes not in (1, shape[0]):
        site.refuse(f"has {slopes} slopes, but its input is {describe(shape)}: set num_parameters to 1 or {shape[0]}")
    return Inferred({**given, "num_parameters": slopes}, shape, slopes)


def flatten(site: Site, given: Parameters, shape: Shape) -> Inferred:
    """Maps to vectors; vectors stay as they are."""
    if given.get("start_dim", 1) != 1 or given.get("end_dim", -1) != -1:
        site.refuse("flattens all but the batch: leave start_dim and end_dim away")
    return Inferred({}, (prod(shape),))


def first_channels(site: Site, given: Parameters, shape: Shape) -> Inferred:
    """The first channels of a map, or values of a vector; the others are cut off."""
    channels = positive(site, given, "channels")
    if channels > shape[0]:
        site.refuse(
            f"keeps {channels} channels, but its input is {describe(shape)}: set channels to {shape[0]} or less"
        )
    return Inferred({"channels": channels}, (channels, *shape[1:]))


def size_scale(site: Site, given: Parameters, shape: Shape) -> Inferred:
    """Maps to a given size; vectors stay as they are."""
    dims = len(shape) - 1
    if dims == 0:
        return Inferred({"final_size": 1}, shape)
    sizes = _sizes(site, given, "final_size", dims, 1)
    return Inferred({"final_size": sizes}, (shape[0], *sizes))


def convolution_151(site: Site, given: Parameters, shape: Shape) -> Inferred:
    """A 1 x 5 convolution, then a 5 x 1 convolution; each is clamped to the map that it meets."""
    require_map(site, shape, 2)
    channels = positive(site, given, "out_channels")
    stride = positive(site, given, "stride", 1)
    kernel = _sizes(site, given, "kernel_size", 2, 5)
    width = min(kernel[1], shape[2])
    middle = ((shape[1] - 1) // stride + 1, (shape[2] - width) // stride + 1)
    height = min(kernel[0], middle[0])
    sizes = ((middle[0] - height) // stride + 1, (middle[1] - 1) // stride + 1)
    completed = {"in_channels": shape[0], "out_channels": channels, "stride": stride, "kernel_size": (height, width)}
    first, second = shape[0] * channels * width, channels * channels * height
    return Inferred(
        completed,
        (channels, *sizes),
        first + second + 2 * channels,
        first * prod(middle) + second * prod(sizes),
        note=_note(kernel, (height, width), shape),
    )


def linear(site: Site, given: Parameters, shape: Shape) -> Inferred:
    """A dense layer over the flattened input."""
    n_inputs = prod(shape)
    n_outputs = positive(site, given, "out_features")
    bias = flag(site, given, "bias", True)
    completed = {"in_features": n_inputs, "out_features": n_outputs, "bias": bias}
    weights = n_inputs * n_outputs
    return Inferred(completed, (n_outputs,), weights + n_outputs * bias, weights, flatten=len(shape) > 1)


def convolution(dims: int) -> Rule:
    """A convolution over `dims`-dimensional maps, with the input channels of its input."""

    def rule(site: Site, given: Parameters, shape: Shape) -> Inferred:
        require_map(site, shape, dims)
        channels = shape[0]
        n_outputs = positive(site, given, "out_channels")
        groups = positive(site, given, "groups", 1)
        bias = flag(site, given, "bias", True)
        if channels % groups or n_outputs % groups:
            site.refuse(
                f"has {groups} groups, which do not divide its {channels} input and {n_outputs} output channels"
            )
        window, sizes, note = _convolution_window(site, given, shape, dims)
        weights = channels // groups * n_outputs * prod(window["kernel_size"])
        completed = {
            "in_channels": channels,
            "out_channels": n_outputs,
            **window,
            "groups": groups,
            "bias": bias,
            "padding_mode": _padding_mode(site, given, window, shape),
        }
        return Inferred(completed, (n_outputs, *sizes), weights + n_outputs * bias, weights * prod(sizes), False, note)

    return rule


def separable_convolution(dims: int) -> Rule:
    """A depthwise convolution without bias, then a 1x1 convolution."""

    def rule(site: Site, given: Parameters, shape: Shape) -> Inferred:
        require_map(site, shape, dims)
        channels = shape[0]
        n_outputs = positive(site, given, "out_channels")
        bias = flag(site, given, "bias", True)
        window, sizes, note = _convolution_window(site, given, shape, dims)
        weights = channels * prod(window["kernel_size"]) + channels * n_outputs
        completed = {"in_channels": channels, "out_channels": n_outputs, **window, "bias": bias}
        return Inferred(completed, (n_outputs, *sizes), weights + n_outputs * bias, weights * prod(sizes), False, note)

    return rule


def max_pool(dims: int) -> Rule:
    """The largest value of each window."""

    def rule(site: Site, given: Parameters, shape: Shape) -> Inferred:
        require_map(site, shape, dims)
        if given.get("return_indices"):
            site.refuse("cannot return indices: leave return_indices away")
        dilation = _sizes(site, given, "dilation", dims, 1)
        completed, sizes, note = _pool_window(site, given, shape, dims, dilation)
        return Inferred({**completed, "dilation": dilation}, (shape[0], *sizes), note=note)

    return rule


def average_pool(dims: int) -> Rule:
    """The mean of each window. In 3-D torch takes no window that is larger than the map without its padding."""

    def rule(site: Site, given: Parameters, shape: Shape) -> Inferred:
        require_map(site, shape, dims)
        completed, sizes, note = _pool_window(site, given, shape, dims, (1,) * dims, inside=dims == 3)
        completed["count_include_pad"] = flag(site, given, "count_include_pad", True)
        if given.get("divisor_override") is not None:
            completed["divisor_override"] = positive(site, given, "divisor_override")
        return Inferred(completed, (shape[0], *sizes), note=note)

    return rule


def adaptive_pool(dims: int) -> Rule:
    """Pooling to a stated size; None keeps the size of the input."""

    def rule(site: Site, given: Parameters, shape: Shape) -> Inferred:
        require_map(site, shape, dims)
        if given.get("return_indices"):
            site.refuse("cannot return indices: leave return_indices away")
        wanted = given.get("output_size", 1)
        per_dimension = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted] * dims
        if len(per_dimension) == dims:
            per_dimension = [
                size if given_size is None else given_size
                for given_size, size in zip(per_dimension, shape[1:], strict=True)
            ]
        sizes = _sizes(site, {"output_size": per_dimension}, "output_size", dims)
        return Inferred({"output_size": sizes}, (shape[0], *sizes))

    return rule


def batch_norm(dims: int) -> Rule:
    """Batch normalization over `dims`-dimensional maps; vectors where `dims` is 1."""

    def rule(site: Site, given: Parameters, shape: Shape) -> Inferred:
        if not (dims == 1 and len(shape) == 1):
            require_map(site, shape, dims)
        affine = flag(site, given, "affine", True)
        completed = {**given, "num_features": shape[0], "affine": affine}
        return Inferred(completed, shape, 2 * shape[0] * affine)

    return rule


def instance_norm(dims: int) -> Rule:
    """Normalization of each channel of each sample."""

    def rule(site: Site, given: Parameters, shape: Shape) -> Inferred:
        require_map(site, shape, dims)
        if prod(shape[1:]) == 1:
            site.refuse(f"needs more than one value in a channel, but its input is {describe(shape)}")
        affine = flag(site, given, "affine", False)
        completed = {**given, "num_features": shape[0], "affine": affine}
        return Inferred(completed, shape, 2 * shape[0] * affine)

    return rule


def group_norm(site: Site, given: Parameters, shape: Shape) -> Inferred:
    """Normalization of groups of channels of each sample."""
    groups = positive(site, given, "num_groups")
    if shape[0] % groups:
        site.refuse(f"has {groups} groups, which do not divide its {shape[0]} input channels")
    if prod(shape) == groups:
        site.refuse(f"needs more than one value in a group, but has {groups} groups and its input is {describe(shape)}")
    affine = flag(site, given, "affine", True)
    completed = {**given, "num_groups": groups, "num_channels": shape[0], "affine": affine}
    return Inferred(completed, shape, 2 * shape[0] * affine)


def layer_norm(site: Site, given: Parameters, shape: Shape) -> Inferred:
    """Normalization of each sample over its whole shape."""
    affine = flag(site, given, "elementwise_affine", True)
    bias = flag(site, given, "bias", True)
    completed = {**given, "normalized_shape": list(shape), "elementwise_affine": affine, "bias": bias}
    return Inferred(completed, shape, affine * (1 + bias) * prod(shape))


def require_map(site: Site, shape: Shape, dims: int) -> None:
    """Refuse inputs that are no `dims`-dimensional maps."""
    if len(shape) != dims + 1:
        site.refuse(f"works on {dims}-D maps, but its input is {describe(shape)}")


def _convolution_window(
    site: Site, given: Parameters, shape: Shape, dims: int
) -> tuple[dict[str, Any], Shape, str | None]:
    """Kernel, stride, padding and dilation as torch takes them, the spatial sizes of the output, and a note.

    A kernel that is larger than the padded map is clamped to it. With "same" padding and a stride above 1, both sides
    are padded by dilation * (kernel - 1) // 2.
    """
    kernel = _sizes(site, given, "kernel_size", dims)
    stride = _sizes(site, given, "stride", dims, 1)
    dilation = _sizes(site, given, "dilation", dims, 1)
    padding = given.get("padding", 0)
    if padding == "same" and stride == (1,) * dims:
        window = {"kernel_size": kernel, "stride": stride, "padding": "same", "dilation": dilation}
        return window, shape[1:], None
    if padding == "same":
        sides = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    elif padding == "valid":
        sides = (0,) * dims
    else:
        sides = _sizes(site, given, "padding", dims, 0, least=0)
    clamped = _clamp(kernel, dilation, sides, shape)
    sizes = tuple(
        (size + 2 * side - d * (k - 1) - 1) // step + 1
        for size, side, d, k, step in zip(shape[1:], sides, dilation, clamped, stride, strict=True)
    )
    window = {"kernel_size": clamped, "stride": stride, "padding": sides, "dilation": dilation}
    return window, sizes, _note(kernel, clamped, shape)


def _pool_window(
    site: Site, given: Parameters, shape: Shape, dims: int, dilation: Shape, *, inside: bool = False
) -> tuple[dict[str, Any], Shape, str | None]:
    """Kernel, stride, padding and rounding as torch takes them, the spatial sizes of the output, and a note.

    A kernel that is larger than the padded map is clamped to it, and the padding to half of what is left. Where the
    padding is `inside`, the kernel is clamped to the map without it.
    """
    kernel = _sizes(site, given, "kernel_size", dims)
    stride = _sizes(site, given, "stride", dims, kernel)
    padding = _sizes(site, given, "padding", dims, 0, least=0)
    ceil_mode = flag(site, given, "ceil_mode", False)
    if any(2 * side > k for side, k in zip(padding, kernel, strict=True)):
        site.refuse(f"has padding {_text(padding)}, more than half of its kernel {_text(kernel)}")
    clamped = _clamp(kernel, dilation, (0,) * dims if inside else padding, shape)
    while any(2 * side > k for side, k in zip(padding, clamped, strict=True)):
        padding = tuple(min(side, k // 2) for side, k in zip(padding, clamped, strict=True))
        clamped = _clamp(clamped, dilation, padding, shape)
    sizes = []
    for size, side, k, d, step in zip(shape[1:], padding, clamped, dilation, stride, strict=True):
        room = size + 2 * side - d * (k - 1) - 1
        steps = -(-room // step) if ceil_mode else room // step
        if ceil_mode and steps * step >= size + side:
            steps -= 1
        sizes.append(steps + 1)
    completed = {"kernel_size": clamped, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    return completed, tuple(sizes), _note(kernel, clamped, shape)


def _clamp(kernel: Shape, dilation: Shape, padding: Shape, shape: Shape) -> Shape:
    """The kernel, no larger than the padded map."""
    return tuple(
        k if d * (k - 1) < size + 2 * side else (size + 2 * side - 1) // d + 1
        for k, d, side, size in zip(kernel, dilation, padding, shape[1:], strict=True)
    )


def _note(kernel: Shape, clamped: Shape, shape: Shape) -> str | None:
    """What was clamped to a map, in words; None where nothing was."""
    if clamped == kernel:
        return None
    return f"kernel {_text(kernel)} clamped to {_text(clamped)}, as its input is {describe(shape)}"


def _padding_mode(site: Site, given: Parameters, window: Mapping[str, Any], shape: Shape) -> str:
    mode = given.get("padding_mode", "zeros")
    if mode not in ("zeros", "reflect", "replicate", "circular"):
        site.refuse(f"has padding_mode {mode!r}: set zeros, reflect, replicate or circular")
    if mode in ("reflect", "circular"):
        padding = window["padding"]
        if padding == "same":
            reach = zip(window["dilation"], window["kernel_size"], strict=True)
            padding = tuple((d * (k - 1) + 1) // 2 for d, k in reach)
        limit = 1 if mode == "reflect" else 0
        if any(side > size - limit for side, size in zip(padding, shape[1:], strict=True)):
            site.refuse(f"has {mode} padding {_text(padding)}, too much for its input, {describe(shape)}")
    return str(mode)


def _sizes(
    site: Site, given: Parameters, key: str, dims: int, default: int | Shape | None = None, *, least: int = 1
) -> Shape:
    """A parameter that is one integer for all dimensions, or a list of one for each."""
    value = given.get(key)
    if value is None:
        if default is None:
            site.refuse(f"lacks {key}: set it to a positive integer, or a list of {dims}")
        value = default
    if type(value) is int and value >= least:
        return (value,) * dims
    if isinstance(value, (list, tuple)):
        values = tuple(_integer(item) for item in value)
        if len(values) == 1:
            values *= dims
        if len(values) == dims and all(item is not None and item >= least for item in values):
            return values  # type: ignore[return-value]
    else:
        size = _integer(value)
        if size is not None and size >= least:
            return (size,) * dims
    site.refuse(f"has {key} {value!r}: set an integer of at least {least}, or a list of {dims}")


def positive(site: Site, given: Parameters, key: str, default: int | None = None) -> int:
    """A parameter that is a positive integer."""
    value = given.get(key, default)
    if type(value) is int and value > 0:
        return value
    if value is None:
        site.refuse(f"lacks {key}: set it to a positive integer")
    size = _integer(value)
    if size is None or size < 1:
        site.refuse(f"has {key} {value!r}: set a positive integer")
    return size


def flag(site: Site, given: Parameters, key: str, default: bool) -> bool:
    """A parameter that is true or false."""
    value = given.get(key, default)
    if value is True or value is False:
        return bool(value)
    if value not in (0, 1):
        site.refuse(f"has {key} {value!r}: set true or false")
    return bool(value)


def _integer(value: object) -> int | None:
    """The integer that `value` equals, as 3.0 does; None where there is none."""
    if isinstance(value, (int, float)) and value == int(value):
        return int(value)
    return None


def _text(sizes: Shape) -> str:
    return "x".join(map(str, sizes))
