"""NORD's names for layers and their types."""

from nord_hpc.builder.layer_types import (
    Conv2d151,
    Flatten,
    Identity,
    ScaleLayer,
    SizeScaleLayer,
    find_layer_type,
    types_dict,
)

__all__ = ["Conv2d151", "Flatten", "Identity", "ScaleLayer", "SizeScaleLayer", "find_layer_type", "types_dict"]
