"""Maps that keep their size: a descriptor with what must be added or set for that; shapes are left to the builder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nord_hpc.builder.operations import OPERATIONS
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput

KeepDimensions = int | Sequence[int] | Sequence[str | type] | None
"""An integer, or one for each dimension: the maps that a layer gets are brought to this size. Kinds of convolutions,
by name or class: they pad so that a stride of 1 keeps the size of their maps. None changes nothing."""

_TAKES_ANY_SIZE = ("Flatten", "Linear")


def with_kept_sizes(descriptor: NeuralDescriptor, keep: KeepDimensions) -> NeuralDescriptor:
    """A descriptor whose maps keep their size; the one given is not changed.

    Raises:
        BadInput: `keep` names a kind without "same" padding.
    """
    if keep is None:
        return descriptor
    if isinstance(keep, int):
        return _with_size(descriptor, keep)
    if all(isinstance(item, int) for item in keep):
        return _with_size(descriptor, [int(str(item)) for item in keep])
    return _with_padding(descriptor, [item if isinstance(item, str) else item.__name__ for item in keep])  # type: ignore[union-attr]


def _with_padding(descriptor: NeuralDescriptor, kinds: Sequence[str]) -> NeuralDescriptor:
    able = [kind for kind in OPERATIONS if kind.startswith(("Conv", "SeparableConv")) and kind != "Conv2d151"]
    for kind in kinds:
        if kind not in able:
            raise BadInput(
                f"keep_dimensions: {kind!r} has no padding that keeps the size; set any of {', '.join(able)}"
            )
    value = descriptor.to_json()
    for layer in value["layers"]:
        if layer["kind"] in kinds:
            layer["parameters"]["padding"] = "same"
    return NeuralDescriptor.from_json(value)


def _with_size(descriptor: NeuralDescriptor, size: int | list[int]) -> NeuralDescriptor:
    value = descriptor.to_json()
    kinds = {layer["name"]: layer["kind"] for layer in value["layers"]}
    resized: dict[str, str] = {}
    for layer in value["layers"]:
        if layer["kind"] not in _TAKES_ANY_SIZE:
            layer["inputs"] = [_resized(source, kinds, resized) for source in layer["inputs"]]
    added: list[dict[str, Any]] = [
        {"name": name, "kind": "SizeScaleLayer", "parameters": {"final_size": size}, "join": "add", "inputs": [source]}
        for source, name in resized.items()
    ]
    return NeuralDescriptor.from_json({**value, "layers": [*value["layers"], *added]})


def _resized(source: str, kinds: dict[str, str], resized: dict[str, str]) -> str:
    """The layer that resizes the output of `source`."""
    if source not in resized:
        name = f"{source} resized"
        while name in kinds or name in resized.values():
            name += "'"
        resized[source] = name
    return resized[source]
