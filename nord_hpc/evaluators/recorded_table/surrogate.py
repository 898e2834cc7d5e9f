"""Predicts fitness and time of trainings that were not recorded, by a regression on what stands in descriptors.

The features of a training are those of its network's live layers: how many there are, of each kind, and connections
between them, the longest path, joins of each sort; for each numeric parameter of each kind of layer the sum and the
largest of log2(1 + |value|); for each other value of a parameter its count; and beside them the candidate's settings,
the logarithm of the epochs, and the share of the data.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.evaluators.recorded_table.file import Recording
from nord_hpc.trial import Fidelity, Json

if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesRegressor  # type: ignore[import-untyped]

TREES = 50
FOLDS = 5
FEWEST_NETWORKS = 10
"""Below which nothing is predicted: there is no telling how wrong it would be."""

SHORTEST_SECONDS = 1e-6

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PredictionError:
    """On networks that the regression has not seen, by cross-validation in `FOLDS` parts.

    Attributes:
        networks: different ones.
        mean_absolute, root_mean_square: of the fitness.
        kendall_tau: between predicted and true fitness, at the highest recorded fidelity.
        seconds_factor: the typical factor between predicted and true time: exp of the mean of |log|.
    """

    networks: int
    mean_absolute: float
    root_mean_square: float
    kendall_tau: float
    seconds_factor: float


class Surrogate:
    """A forest of extremely randomized trees for the fitness, and one for the logarithm of the seconds.

    Geurts et al., "Extremely randomized trees", Machine Learning 63, 2006. Equal recordings give equal predictions.

    Args:
        described: the features of each training.
    """

    def __init__(self, described: Sequence[Mapping[str, float]], recordings: Sequence[Recording]) -> None:
        self._names = sorted({name for one in described for name in one})
        x_NF = self._rows(described)
        self._fitness = _fitted(x_NF, np.array([r.fitness for r in recordings]))
        self._log_seconds = _fitted(x_NF, np.log([max(r.seconds, SHORTEST_SECONDS) for r in recordings]))

    def predict(self, described: Sequence[Mapping[str, float]]) -> tuple[Floats, Floats]:
        """Fitness and seconds of each."""
        x_NF = self._rows(described)
        return self._fitness.predict(x_NF), np.exp(self._log_seconds.predict(x_NF))

    def _rows(self, described: Sequence[Mapping[str, float]]) -> Floats:
        return np.array([[one.get(name, 0.0) for name in self._names] for one in described])


def _fitted(x_NF: Floats, y_N: Floats) -> ExtraTreesRegressor:
    from sklearn.ensemble import ExtraTreesRegressor

    return ExtraTreesRegressor(TREES, random_state=0, n_jobs=1).fit(x_NF, y_N)


def describe_all(recordings: Sequence[Recording], networks: Mapping[str, Json]) -> list[dict[str, float]]:
    """The features of each training."""
    return [features(networks[r.descriptor_hash], r.settings, Fidelity(r.epochs, r.fraction)) for r in recordings]


def features(descriptor: Json, settings: Mapping[str, Json], fidelity: Fidelity) -> dict[str, float]:
    """Numbers by name that describe a training; what is not named is 0. See the module."""
    network = NeuralDescriptor.from_json(descriptor)
    order = network.canonical_order()
    live = set(order)
    found: defaultdict[str, float] = defaultdict(float)
    depth: dict[str, int] = {}
    for name in order:
        layer, inputs = network.layers[name], [source for source in network.inputs(name) if source in live]
        depth[name] = 1 + max((depth[source] for source in inputs), default=0)
        found["layers"] += 1
        found["connections"] += len(inputs)
        found[f"kind {layer.kind}"] += 1
        if len(inputs) > 1:
            found[f"join {layer.join}"] += 1
        _add_parameters(found, layer.kind, layer.parameters)
    for name, value in settings.items():
        found[f"setting {name}" if _is_number(value) else f"setting {name} {value}"] = _amount(value)
    longest = float(max(depth.values(), default=0))
    return {**found, "depth": longest, "epochs": math.log2(1 + fidelity.epochs), "fraction": fidelity.fraction}


def _add_parameters(found: defaultdict[str, float], kind: str, parameters: Mapping[str, Json]) -> None:
    for name, value in parameters.items():
        for part in value if isinstance(value, list) else [value]:
            if _is_number(part):
                key, amount = f"{kind}.{name}", math.log2(1 + abs(part))
                found[f"sum {key}"] += amount
                found[f"largest {key}"] = max(found[f"largest {key}"], amount)
            else:
                found[f"{kind}.{name} {part}"] += 1


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _amount(value: Json) -> float:
    """A setting as a number: its logarithm, as learning rates and sizes go by factors; 1 for what is no number."""
    if not _is_number(value):
        return 1.0
    return math.log2(value) if value > 0 else float(value)


def cross_validated(recordings: Sequence[Recording], networks: Mapping[str, Json]) -> PredictionError | None:
    """How wrong the predictions are for networks that are not in the table; None where there are too few to tell."""
    from scipy.stats import kendalltau  # type: ignore[import-untyped]

    hashes = list(dict.fromkeys(recording.descriptor_hash for recording in recordings))
    if len(hashes) < FEWEST_NETWORKS:
        return None
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(hashes))
    fold_of = {hashes[place]: position % FOLDS for position, place in enumerate(order)}
    fold_N = np.array([fold_of[recording.descriptor_hash] for recording in recordings])
    described = describe_all(recordings, networks)
    fitness_N, seconds_N = np.empty(len(recordings)), np.empty(len(recordings))
    for fold in range(FOLDS):
        seen, unseen = (np.flatnonzero(where).tolist() for where in (fold_N != fold, fold_N == fold))
        surrogate = Surrogate([described[n] for n in seen], [recordings[n] for n in seen])
        fitness_N[unseen], seconds_N[unseen] = surrogate.predict([described[n] for n in unseen])
    errors = fitness_N - [r.fitness for r in recordings]
    factors = np.abs(np.log(seconds_N / [max(r.seconds, SHORTEST_SECONDS) for r in recordings]))
    highest = max((r.fraction, r.epochs) for r in recordings)
    best = [(r.fitness, f) for r, f in zip(recordings, fitness_N, strict=True) if (r.fraction, r.epochs) == highest]
    tau = float(kendalltau(*zip(*best, strict=True)).statistic) if _varies(best) else 0.0
    return PredictionError(
        networks=len(hashes),
        mean_absolute=float(np.abs(errors).mean()),
        root_mean_square=float(np.sqrt((errors**2).mean())),
        kendall_tau=tau,
        seconds_factor=float(np.exp(factors.mean())),
    )


def _varies(pairs: Iterable[tuple[float, float]]) -> bool:
    return all(len(set(column)) > 1 for column in zip(*pairs, strict=True))
