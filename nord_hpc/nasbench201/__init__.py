"""The cells of NAS-Bench-201: names and numbers, descriptors of them, and whole networks; tables are left to others."""

from nord_hpc.nasbench201.cell import (
    AVG_POOL_3X3,
    CONV_1X1,
    CONV_3X3,
    EDGES,
    N_CELLS,
    NONE,
    OPERATIONS,
    SKIP,
    Cell,
    architecture_of,
    cell_of,
    cell_of_index,
    index_of,
    unique_string,
)
from nord_hpc.nasbench201.descriptors import from_descriptor, to_descriptor
from nord_hpc.nasbench201.network import count_multiply_adds, count_parameters, from_network, network_descriptor

__all__ = [
    "AVG_POOL_3X3",
    "CONV_1X1",
    "CONV_3X3",
    "EDGES",
    "NONE",
    "N_CELLS",
    "OPERATIONS",
    "SKIP",
    "Cell",
    "architecture_of",
    "cell_of",
    "cell_of_index",
    "count_multiply_adds",
    "count_parameters",
    "from_descriptor",
    "from_network",
    "index_of",
    "network_descriptor",
    "to_descriptor",
    "unique_string",
]
