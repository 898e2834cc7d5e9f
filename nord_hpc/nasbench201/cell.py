"""A cell of NAS-Bench-201: six operations, its text, number and class; descriptors and tables are left to others.

The space, its order and its identities are those of Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible
Neural Architecture Search" (arXiv 2001.00326), and of Dong et al., "NATS-Bench" (arXiv 2009.00437), whose topology
space is the same: four nodes, each fed by all earlier ones through an operation, and the sum of these is its value.
"""

from __future__ import annotations

import functools
import random
from itertools import product
from typing import NamedTuple

from nord_hpc.errors import Infeasible

NONE = "none"
SKIP = "skip_connect"
CONV_1X1 = "nor_conv_1x1"
CONV_3X3 = "nor_conv_3x3"
AVG_POOL_3X3 = "avg_pool_3x3"
OPERATIONS = (NONE, SKIP, CONV_1X1, CONV_3X3, AVG_POOL_3X3)
"""What an edge may do to the value that it carries; in the benchmark's order."""

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""(source, target) of each edge, in the order of the text; node 0 is the cell's input, node 3 its output."""

N_NODES = 4
N_CELLS: int = len(OPERATIONS) ** len(EDGES)

ORDER_SEED = 88
"""The benchmark shuffled the cells by this seed, and numbered them."""

Cell = tuple[str, ...]
"""The operations of the six edges."""


class _Order(NamedTuple):
    cells: tuple[Cell, ...]
    architectures: tuple[str, ...]
    numbers: dict[str, int]


def architecture_of(cell: Cell) -> str:
    """The text of a cell: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`, node by node."""
    return "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*cell)


def cell_of(architecture: str) -> Cell:
    """The cell of a text.

    Raises:
        Infeasible: it is not the text of a cell.
    """
    number = _order().numbers.get(architecture)
    if number is None:
        raise Infeasible(
            f"{architecture!r} is no cell of NAS-Bench-201; set |op~0|+|op~0|op~1|+|op~0|op~1|op~2| with operations "
            f"of {', '.join(OPERATIONS)}"
        )
    return _order().cells[number]


def is_architecture(text: object) -> bool:
    """Whether this is the text of a cell. Never raises."""
    return isinstance(text, str) and text in _order().numbers


def cell_of_index(index: int) -> Cell:
    """The cell of that number, 0 .. 15,624, in the benchmark's order."""
    return _order().cells[index]


def index_of(architecture: str) -> int:
    """The number of a cell by its text, in the benchmark's order.

    Raises:
        KeyError: it is not the text of a cell.
    """
    return _order().numbers[architecture]


def unique_string(cell: Cell, *, zeros: bool) -> str:
    """The benchmark's text of what a cell computes: equal for cells that it takes for one.

    Each node is written as the sorted sum of what arrives; skips vanish.

    Args:
        zeros: whether an edge of "none", and one that carries nothing but such, is written as zero, "#". A sum of
            several zeros is not seen to be zero, and a zero stays in its sum.
    """
    nodes = ["0"]
    for target in range(1, N_NODES):
        terms = []
        for (source, end), operation in zip(EDGES, cell, strict=True):
            if end != target:
                continue
            if zeros and (operation == NONE or nodes[source] == "#"):
                terms.append("#")
            elif operation == SKIP:
                terms.append(nodes[source])
            else:
                terms.append(f"({nodes[source]})@{operation}")
        nodes.append("+".join(sorted(terms)))
    return nodes[-1]


@functools.cache
def _order() -> _Order:
    """All cells in the benchmark's order; made in hundredths of a second."""
    cells = list(product(OPERATIONS, repeat=len(EDGES)))
    random.Random(ORDER_SEED).shuffle(cells)
    architectures = tuple(architecture_of(cell) for cell in cells)
    return _Order(tuple(cells), architectures, {text: number for number, text in enumerate(architectures)})
