"""Bayesian optimization of hyperparameters by Optuna's tree-structured Parzen estimators, behind ask and tell."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nord_hpc.interfaces import SearchSpace
from nord_hpc.trial import Fidelity, FinishedTrial, Json, Proposal

SEEDS = 2**31


class Bayesian:
    """Optuna's sampler of tree-structured Parzen estimators; see `nord_hpc.interfaces.Strategy` for the contract.

    Bergstra et al., "Algorithms for Hyper-Parameter Optimization", 2011. Parameters that exist at every point are
    sampled jointly, the others each by itself. Trials in flight count as bad ones (a constant liar), so that parallel
    asks spread.

    It begins with `initial` samples of the space. After that each candidate follows from the results so far, the
    candidates in flight, and a seed that is drawn for it: nothing else of a sampler is kept, so a search goes on from
    its saved state to the bit. Failed and infeasible trials count as worse than all others. The state holds all trials.
    """

    class Options(BaseModel):
        """When the sampler begins, and how much it tries.

        Attributes:
            initial: samples of the space before it.
            candidates: points among which an ask chooses.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        initial: int = Field(10, ge=1)
        candidates: int = Field(24, ge=1)

    def __init__(self, options: Options, *, space: SearchSpace, seed: int, full_fidelity: Fidelity) -> None:
        """
        Raises:
            ValueError: the space has no parameters, or Optuna is not installed.
        """
        if not hasattr(space, "parameters"):
            raise ValueError(
                f"strategy bayesian needs a space of parameters, and {type(space).__name__} has no method parameters; "
                f"set space.name to hyperparameters, or strategy.name to agebo for networks with hyperparameters"
            )
        self._optuna = _import_optuna()
        self._options = options
        self._space = space
        self._parameters: dict[str, Json] = space.parameters()
        self._distributions = {name: self._distribution(given) for name, given in self._parameters.items()}
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._began = False
        self._n_left = options.initial
        # By trial number, in the order in which they became known: [genotype, score or None, whether it is in flight].
        self._trials: dict[int, list[Json]] = {}
        self._study = self._empty_study()
        self._places: dict[int, int] = {}

    def ask(self, number: int) -> Proposal:
        self._began = True
        if number in self._trials:  # it was dropped
            self._study.tell(self._places.pop(number), state=self._optuna.trial.TrialState.FAIL)
            del self._trials[number]
        if self._n_left:
            self._n_left -= 1
            genotype = self._space.sample(self._rng)
        else:
            genotype = self._suggest(int(self._rng.integers(SEEDS)))
        self._know(number, genotype, None, pending=True)
        return Proposal(genotype)

    def tell(self, finished: FinishedTrial) -> None:
        number, score = finished.trial.number, finished.score
        if score is not None and not math.isfinite(score):
            score = None
        if number not in self._trials:
            if not self._began:
                self._n_left = max(0, self._n_left - 1)
            self._know(number, finished.trial.genotype, score, pending=False)
            return
        self._trials[number][1:] = [score, False]
        if score is None:
            self._study.tell(self._places[number], state=self._optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(self._places[number], score)

    def independent_asks(self) -> int:
        return self._n_left

    def state_dict(self) -> Json:
        return {
            "rng": self._rng.bit_generator.state,
            "began": self._began,
            "left": self._n_left,
            "trials": [[number, *known] for number, known in self._trials.items()],
        }

    def load_state_dict(self, state: Json) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._began = state["began"]
        self._n_left = state["left"]
        self._trials, self._places = {}, {}
        self._study = self._empty_study()
        for number, genotype, score, pending in state["trials"]:
            self._know(number, genotype, score, pending=pending)

    def _empty_study(self) -> Any:
        return self._optuna.create_study(direction="maximize")

    def _know(self, number: int, genotype: Json, score: float | None, *, pending: bool) -> None:
        """Take a trial down, here and in the study, where order and values alone count."""
        states = self._optuna.trial.TrialState
        self._trials[number] = [genotype, score, pending]
        self._places[number] = len(self._study.get_trials(deepcopy=False))
        state = states.RUNNING if pending else states.PRUNED if score is None else states.COMPLETE
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=state,
                value=score,
                params={name: self._to_optuna(name, value) for name, value in genotype.items()},
                distributions={name: self._distributions[name] for name in genotype},
            )
        )

    def _suggest(self, seed: int) -> Json:
        """The sampler's next point. Its own record of it is cancelled: it holds more than the point."""
        self._study.sampler = self._optuna.samplers.TPESampler(
            n_startup_trials=0, n_ei_candidates=self._options.candidates, seed=seed
        )
        asked = self._study.ask()
        genotype: dict[str, Json] = {}
        for name, given in self._parameters.items():
            if _is_active(given["when"], genotype):
                genotype[name] = self._suggested(asked, name, given)
        self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        return genotype

    def _suggested(self, asked: Any, name: str, given: dict[str, Json]) -> Json:
        if given["type"] == "float":
            return float(asked.suggest_float(name, given["low"], given["high"], log=given["log"]))
        if given["type"] == "int":
            return int(asked.suggest_int(name, given["low"], given["high"], log=given["log"]))
        last = len(given["choices"]) - 1
        if given["type"] == "ordinal":
            return given["choices"][asked.suggest_int(name, 0, last)]
        return given["choices"][asked.suggest_categorical(name, tuple(range(last + 1)))]

    def _distribution(self, given: dict[str, Json]) -> Any:
        """The same as what `_suggested` asks for."""
        kinds = self._optuna.distributions
        if given["type"] == "float":
            return kinds.FloatDistribution(given["low"], given["high"], log=given["log"])
        if given["type"] == "int":
            return kinds.IntDistribution(given["low"], given["high"], log=given["log"])
        last = len(given["choices"]) - 1
        if given["type"] == "ordinal":
            return kinds.IntDistribution(0, last)
        return kinds.CategoricalDistribution(tuple(range(last + 1)))

    def _to_optuna(self, name: str, value: Json) -> Json:
        """Choices are known to Optuna by their place, as values of any kind may stand in a job."""
        choices = self._parameters[name].get("choices")
        return value if choices is None else _place(choices, value)


def _place(choices: list[Json], value: Json) -> int:
    return next(place for place, choice in enumerate(choices) if _same(choice, value))


def _same(first: Json, second: Json) -> bool:
    """Equal in type, too: True and 1.0 are equal to 1."""
    return type(first) is type(second) and bool(first == second)


def _is_active(when: dict[str, list[Json]], genotype: dict[str, Json]) -> bool:
    return all(
        other in genotype and any(_same(genotype[other], value) for value in values) for other, values in when.items()
    )


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            "strategy bayesian needs the package optuna; install it with: pip install 'nord_hpc[bayesian]'"
        ) from error
    # Optuna logs each study and trial by a handler of its own; the command line's log says what becomes of trials.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
