"""The head: the dense part between the descriptor's last layer and the network's outputs, as kinds and parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nord_hpc.builder.shapes import Shape
from nord_hpc.errors import BadInput
from nord_hpc.trial import Json

LARGEST_FLATTENED_MAP = 64


@dataclass(frozen=True, slots=True)
class Head:
    """A dense head, or none.

    Attributes:
        kind: "dense", or "none" where the descriptor's last layer gives the outputs itself.
        layers: widths of the hidden dense layers.
        activation: kind of layer after each hidden dense layer.
        batch_norm: whether batch normalization stands between the two.
        dropout: probability, before each dense layer.
        features: "pooled" averages maps to one value a channel, "flattened" takes all values; "auto" flattens maps of
            up to `LARGEST_FLATTENED_MAP` positions, where the place of a feature still tells something. "positions"
            has the dense layers at each position of a sequence, with outputs at each.
        tied: whether the last dense layer of "positions" has the weight of the network's `Embedding`.
    """

    kind: str = "dense"
    layers: tuple[int, ...] = ()
    activation: str = "ReLU"
    batch_norm: bool = False
    dropout: float = 0.0
    features: str = "pooled"
    tied: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("dense", "none"):
            raise BadInput(f"head.kind: {self.kind!r} is not a choice; set dense or none")
        if self.features not in ("auto", "pooled", "flattened", "positions"):
            raise BadInput(
                f"head.features: {self.features!r} is not a choice; set auto, pooled, flattened or positions"
            )
        if self.tied and self.features != "positions":
            raise BadInput("head.tied: needs outputs at each position of a sequence; set features to positions")
        if any(not isinstance(width, int) or width < 1 for width in self.layers):
            raise BadInput(f"head.layers: {list(self.layers)} is wrong; set a list of positive integers")

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Head:
        """A head given as a mapping, such as {"kind": "dense", "layers": [64], "activation": "ReLU"}."""
        known = cls.__dataclass_fields__
        for key in value:
            if key not in known:
                raise BadInput(f"head.{key}: is not a known key; set one of {', '.join(known)}")
        values: dict[str, Any] = {**value, "layers": tuple(value.get("layers", ()))}
        return cls(**values)

    def operations(self, shape: Shape, n_outputs: int) -> list[tuple[str, str, dict[str, Json]]]:
        """Name, kind and parameters of the head's layers, one after the other, over features of `shape`."""
        if self.kind == "none":
            return []
        steps: list[tuple[str, str, dict[str, Json]]] = []
        dims = 0 if self.features == "positions" else len(shape) - 1
        kind = "PositionLinear" if self.features == "positions" else "Linear"
        if dims and not self._flattens(shape):
            steps.append(("head.pool", f"AdaptiveAvgPool{dims}d", {"output_size": 1}))
        if dims:
            steps.append(("head.flatten", "Flatten", {}))
        for index, width in enumerate((*self.layers, n_outputs)):
            if self.dropout:
                steps.append((f"head.dropout{index}", "Dropout", {"p": self.dropout}))
            steps.append((f"head.linear{index}", kind, {"out_features": width}))
            if index < len(self.layers):
                if self.batch_norm:
                    steps.append((f"head.norm{index}", "BatchNorm1d", {}))
                steps.append((f"head.activation{index}", self.activation, {}))
        if self.tied:
            steps[-1][2]["tied"] = True
        return steps

    def output_shape(self, shape: Shape, n_outputs: int) -> Shape:
        """Of the whole network, whose last searched layer gives `shape`."""
        return (n_outputs, *shape[1:]) if self.features == "positions" else (n_outputs,)

    def _flattens(self, shape: Shape) -> bool:
        if self.features == "auto":
            return math.prod(shape[1:]) <= LARGEST_FLATTENED_MAP
        return self.features == "flattened"
