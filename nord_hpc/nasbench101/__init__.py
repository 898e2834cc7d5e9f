"""The cells of NAS-Bench-101: specs, descriptors of them, and whole networks; tables are left to others."""

from nord_hpc.nasbench101.descriptors import spec_of, to_descriptor
from nord_hpc.nasbench101.network import count_parameters, network_descriptor, vertex_channels
from nord_hpc.nasbench101.spec import (
    CONV1X1,
    CONV3X3,
    INPUT,
    MAX_EDGES,
    MAX_VERTICES,
    MAXPOOL3X3,
    OPERATIONS,
    OUTPUT,
    ModelSpec,
)

__all__ = [
    "CONV1X1",
    "CONV3X3",
    "INPUT",
    "MAXPOOL3X3",
    "MAX_EDGES",
    "MAX_VERTICES",
    "OPERATIONS",
    "OUTPUT",
    "ModelSpec",
    "count_parameters",
    "network_descriptor",
    "spec_of",
    "to_descriptor",
    "vertex_channels",
]
