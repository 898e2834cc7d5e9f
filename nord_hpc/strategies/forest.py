"""A random forest that says how sure it is, as a surrogate of a score; what is done with it is left to strategies."""

from __future__ import annotations

import numpy as np


class Forest:
    """Regression trees on bootstrap samples, with the mean and the deviation of their leaves.

    Hutter et al., "Sequential Model-Based Optimization for General Algorithm Configuration", 2011: a tree predicts the
    mean and the variance of the training targets in the leaf; the forest is the mixture of its trees.

    Args:
        x_NF: N points of F features.
        y_N: their targets.
        trees: in the forest.
        seed: of the bootstrap samples and the splits. Equal arguments give equal forests.
    """

    def __init__(self, x_NF: np.ndarray, y_N: np.ndarray, *, trees: int, seed: int) -> None:
        # Here, as it takes a second, and only some strategies need it.
        from sklearn.tree import DecisionTreeRegressor  # type: ignore[import-untyped]

        rng = np.random.Generator(np.random.PCG64(seed))
        n_points = len(x_NF)
        x_NF = np.ascontiguousarray(x_NF, dtype=np.float32)
        self._trees = []
        for _ in range(trees):
            counts_N = np.bincount(rng.integers(n_points, size=n_points), minlength=n_points).astype(float)
            tree = DecisionTreeRegressor(random_state=int(rng.integers(2**31)))
            tree.fit(x_NF, y_N, sample_weight=counts_N, check_input=False)
            self._trees.append(tree.tree_)

    def predict(self, x_MF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the target at each of M points, each [M]."""
        x_MF = np.ascontiguousarray(x_MF, dtype=np.float32)
        leaves = [(tree, tree.apply(x_MF)) for tree in self._trees]
        means_TM = np.stack([tree.value[leaf, 0, 0] for tree, leaf in leaves])
        variances_TM = np.stack([tree.impurity[leaf] for tree, leaf in leaves])
        mean_M = means_TM.mean(axis=0)
        variance_M = variances_TM.mean(axis=0) + ((means_TM - mean_M) ** 2).mean(axis=0)
        return mean_M, np.sqrt(np.maximum(variance_M, 0.0))
