"""BANANAS: an ensemble of small networks predicts the scores, and mutations of the best are tried in its order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nord_hpc.interfaces import SearchSpace
from nord_hpc.strategies.ensemble import Ensemble
from nord_hpc.strategies.seen import Seen
from nord_hpc.trial import Fidelity, FinishedTrial, Json, Proposal

SEEDS = 2**31
LEAST_RESULTS = 2
"""Results without which there is nothing to fit."""
SAMPLE_ATTEMPTS = 100
"""Samples until one is new; after that the space counts as exhausted, and points come again."""


class Bananas:
    """BANANAS; see `nord_hpc.interfaces.Strategy` for the contract.

    White et al., "BANANAS: Bayesian Optimization with Neural Architectures for Neural Architecture Search", 2021, arXiv
    1910.11858.

    It begins with `initial` samples. After that an ensemble of small networks is fitted to the scores of all completed
    trials, over a path encoding where the space has one and its plain encoding elsewhere, and again after every `every`
    results. An ask mutates the `incumbents`, the best trials so far, to `candidates` points that were not asked before,
    draws for each a number from the normal distribution that the ensemble predicts (independent Thompson sampling), and
    takes the point with the largest. So parallel asks differ, and need not wait for each other.

    The ensemble is not saved: the state holds the data it was fitted to and the seed of the fit, and it is fitted again
    when it is next needed, to the same bits. Failed and infeasible trials are not fitted, and not tried again.
    """

    class Options(BaseModel):
        """Data, ensemble and candidates.

        Attributes:
            initial: samples before the first fit.
            every: results after which the ensemble is fitted again.
            candidates: points among which an ask chooses.
            incumbents: of which these are mutations.
            encoding: `auto` takes paths where the space has them.
            members, hidden, epochs, lr, batch: of the ensemble; see `nord_hpc.strategies.ensemble.Ensemble`.
            window: latest results that are kept, beside the incumbents.
            memory: how many of the latest points are remembered, so that none comes twice.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        initial: int = Field(10, ge=2)
        every: int = Field(10, ge=1)
        candidates: int = Field(100, ge=1)
        incumbents: int = Field(10, ge=1)
        encoding: Literal["auto", "paths", "plain"] = "auto"
        members: int = Field(5, ge=2)
        hidden: tuple[int, ...] = (20, 20, 20)
        epochs: int = Field(100, ge=1)
        lr: float = Field(0.01, gt=0)
        batch: int = Field(32, ge=1)
        window: int = Field(1000, ge=2)
        memory: int = Field(5000, ge=1)

    def __init__(self, options: Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        """
        Raises:
            ValueError: the points of the space have no encoding, or not the one that is wanted.
        """
        self._options = options
        self._space = space
        self._encode = _encoding(space, options.encoding)
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._began = False
        self._n_left = options.initial
        self._seen = Seen(options.memory)
        # Completed trials: (score, number, genotype), in the order of telling, with their encodings.
        self._known: list[tuple[float, int, Json]] = []
        self._codes: list[list[float]] = []
        # The ensemble is fitted to the first so many of them, by this seed.
        self._n_fitted = 0
        self._fit_seed = 0
        self._ensemble: Ensemble | None = None

    def ask(self, number: int) -> Proposal:
        self._began = True
        sampling = self._n_left > 0 or len(self._known) < LEAST_RESULTS
        self._n_left = max(0, self._n_left - 1)
        proposal = Proposal(self._new_sample()) if sampling else self._choose()
        self._seen.add(proposal.genotype)
        return proposal

    def tell(self, finished: FinishedTrial) -> None:
        number, genotype, score = finished.trial.number, finished.trial.genotype, finished.score
        completed = score is not None and math.isfinite(score)
        if not self._began:
            self._seen.add(genotype)
            self._n_left = max(0, self._n_left - completed)
        if score is not None and completed:
            self._know((score, number, genotype))

    def independent_asks(self) -> int:
        return self._n_left

    def state_dict(self) -> Json:
        return {
            "rng": self._rng.bit_generator.state,
            "began": self._began,
            "left": self._n_left,
            "seen": self._seen.state_dict(),
            "known": [list(known) for known in self._known],
            "fitted": self._n_fitted,
            "fit_seed": self._fit_seed,
        }

    def load_state_dict(self, state: Json) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._began, self._n_left = state["began"], state["left"]
        self._seen.load_state_dict(state["seen"])
        self._known, self._codes = [], []
        for score, number, genotype in state["known"]:
            self._know((score, number, genotype))
        self._n_fitted, self._fit_seed, self._ensemble = state["fitted"], state["fit_seed"], None

    def _know(self, known: tuple[float, int, Json]) -> None:
        self._known.append(known)
        self._codes.append(self._encode(known[2]))

    def _new_sample(self) -> Json:
        genotype = self._space.sample(self._rng)
        for _ in range(SAMPLE_ATTEMPTS):
            if genotype not in self._seen:
                break
            genotype = self._space.sample(self._rng)
        return genotype

    def _choose(self) -> Proposal:
        """The candidate whose number, drawn from what is predicted of it, is the largest."""
        n_new = len(self._known) - self._n_fitted
        if n_new >= min(self._options.every, self._n_fitted):
            self._forget_old()
            self._n_fitted = len(self._known)
            self._fit_seed = int(self._rng.integers(SEEDS))
            self._ensemble = None
        ensemble = self._ensemble = self._ensemble or self._fitted()
        candidates = self._candidates()
        if not candidates:
            return Proposal(self._new_sample())
        mean_M, deviation_M = ensemble.predict(np.array([self._encode(child.genotype) for child in candidates]))
        drawn_M = mean_M + deviation_M * self._rng.standard_normal(len(candidates))
        return candidates[int(drawn_M.argmax())]

    def _candidates(self) -> list[Proposal]:
        """Mutations of the incumbents that were not asked before; of a known mutation, a mutation of that."""
        incumbents = self._incumbents()
        candidates = []
        for place in range(self._options.candidates):
            _, number, genotype = incumbents[place % len(incumbents)]
            child = self._space.mutate(genotype, self._rng)
            if child in self._seen:
                child = self._space.mutate(child, self._rng)
            if child not in self._seen:
                candidates.append(Proposal(child, parents=(number,)))
        return candidates

    def _incumbents(self) -> list[tuple[float, int, Json]]:
        return sorted(self._known, key=lambda known: (-known[0], known[1]))[: self._options.incumbents]

    def _forget_old(self) -> None:
        """Drop the oldest results beyond the window, without the incumbents."""
        n_old = len(self._known) - self._options.window
        if n_old <= 0:
            return
        best = {number for _, number, _ in self._incumbents()}
        kept = [k for k, (_, number, _) in enumerate(self._known) if k >= n_old or number in best]
        self._known = [self._known[k] for k in kept]
        self._codes = [self._codes[k] for k in kept]

    def _fitted(self) -> Ensemble:
        options = self._options
        return Ensemble(
            np.array(self._codes[: self._n_fitted], dtype=np.float64),
            np.array([score for score, _, _ in self._known[: self._n_fitted]]),
            members=options.members,
            hidden=options.hidden,
            epochs=options.epochs,
            lr=options.lr,
            batch=options.batch,
            seed=self._fit_seed,
        )


def _encoding(space: SearchSpace, wanted: str) -> Callable[[Json], list[float]]:
    names = {"auto": ("encode_paths", "encode"), "paths": ("encode_paths",), "plain": ("encode",)}[wanted]
    for name in names:
        encode: Callable[[Json], list[float]] | None = getattr(space, name, None)
        if encode is not None:
            return encode
    raise ValueError(
        f"strategy bananas needs numbers that describe a point, and {type(space).__name__} has no "
        f"{' and no '.join(names)}; set space.name to a space that has"
    )
