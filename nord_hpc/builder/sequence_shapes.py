"""Rules of inference for layers of sequences: maps (C, T) with a vector of C values at each of T positions.

They are of the same kind as those of `shapes`, and count multiply-adds likewise: of one sample, over all positions.
"""

from __future__ import annotations

from nord_hpc.builder.cell_trees import CellTree
from nord_hpc.builder.shapes import Inferred, Parameters, Shape, Site, flag, positive, require_map


def embedding(site: Site, given: Parameters, shape: Shape) -> Inferred:
    """A vector for each token; a look-up, so nothing is multiplied. The input stands for one-hot vectors (V, T)."""
    require_map(site, shape, 1)
    width = positive(site, given, "embedding_dim")
    completed = {"num_embeddings": shape[0], "embedding_dim": width}
    return Inferred(completed, (width, shape[1]), shape[0] * width)


def position_linear(site: Site, given: Parameters, shape: Shape) -> Inferred:
    """A dense layer at each position; the weight of a tied one is counted where it is kept."""
    require_map(site, shape, 1)
    n_outputs = positive(site, given, "out_features")
    bias, tied = flag(site, given, "bias", True), flag(site, given, "tied", False)
    completed = {"in_features": shape[0], "out_features": n_outputs, "bias": bias, "tied": tied}
    weights = shape[0] * n_outputs
    return Inferred(completed, (n_outputs, shape[1]), weights * (not tied) + n_outputs * bias, weights * shape[1])


def recurrent_cell(site: Site, given: Parameters, shape: Shape) -> Inferred:
    """A cell run along the sequence: a dense layer of the input and one of the state at each leaf."""
    require_map(site, shape, 1)
    width = positive(site, given, "hidden_size")
    if "cell" not in given:
        site.refuse("lacks cell: set it to the JSON form of a tree")
    try:
        tree = CellTree.from_json(given["cell"])
    except ValueError as error:
        site.refuse(f"has a cell that {error}")
    weights = tree.base * width * (shape[0] + width)
    completed = {"input_size": shape[0], "hidden_size": width, "cell": tree.to_json()}
    # Of each step: both halves of each leaf, and each node's combination and result.
    inner = shape[1] * width * (2 * tree.base + 2 * len(tree.nodes))
    return Inferred(completed, (width, shape[1]), weights + tree.base * width, weights * shape[1], n_inner_values=inner)
