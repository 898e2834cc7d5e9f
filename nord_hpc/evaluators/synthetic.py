"""An evaluator that trains nothing: fitness and time by formula, to test the search itself and to measure it."""

from __future__ import annotations

import hashlib
import math
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from nord_hpc.errors import TrialFailed
from nord_hpc.interfaces import NO_SETTINGS, Control, Gang
from nord_hpc.job import Job, Settings
from nord_hpc.trial import Examination, Fidelity, Json, Outcome, Trial, TrialState

if TYPE_CHECKING:
    from nord_hpc.descriptor import NeuralDescriptor

NAP_SECONDS = 0.02
"""Between two looks at what the outside wants."""

NULL_MICROSECONDS = 1000.0
"""Predicted cost of an epoch that takes no time, before it is spread: virtual time needs an order."""

_NORMAL = NormalDist()


class SyntheticEvaluator:
    """Fitness is a fixed function of the network's hash and the trial's seed, 0 to 1.

    Args:
        folder: that `log` is relative to.
    """

    class Options(Settings):
        """How long evaluations take, and what goes wrong.

        Attributes:
            seconds: mean wall time of an epoch over all data.
            distribution: of the wall time over the networks.
            sigma: of the logarithm of the wall time, where it is lognormal.
            prediction_error: sigma of the logarithm of true over predicted time.
            fail_every: every so many trials one raises an exception; 0 for none.
            nan_every: every so many trials one has a fitness that is no number; 0 for none.
            log: file to which each evaluation appends a line "number pid time" when it begins.
            sleep_jitter_seconds: upper end of a further, truly random time; it changes no result.
        """

        seconds: float = Field(0.0, ge=0)
        distribution: Literal["constant", "lognormal"] = "lognormal"
        sigma: float = Field(0.8, ge=0)
        prediction_error: float = Field(0.15, ge=0)
        fail_every: int = Field(0, ge=0)
        nan_every: int = Field(0, ge=0)
        log: Path | None = None
        sleep_jitter_seconds: float = Field(0.0, ge=0)

    def __init__(self, options: Options, *, job: Job, folder: Path, weights_folder: Path) -> None:
        del job, weights_folder
        self._options = options
        self._log = None if options.log is None else folder / options.log

    def describe(self) -> str:
        return "synthetic: nothing is trained"

    def examine(
        self, descriptor: NeuralDescriptor, fidelity: Fidelity, settings: Mapping[str, Json] = NO_SETTINGS
    ) -> Examination:
        seconds = self._predicted_seconds(descriptor.canonical_hash(), fidelity, mean=self._options.seconds)
        if self._options.seconds == 0:
            seconds = self._predicted_seconds(descriptor.canonical_hash(), fidelity, mean=NULL_MICROSECONDS / 1e6)
        return Examination(cost=max(1, round(seconds * 1e6)))

    def evaluate(self, trial: Trial, *, gang: Gang, control: Control, keep_above: float | None) -> Outcome:
        options = self._options
        if self._log is not None and gang.rank == 0:
            _append(self._log, f"{trial.number} {os.getpid()} {time.time():.6f}\n")
        began = time.perf_counter()
        seconds = 0.0
        if options.seconds:
            predicted = self._predicted_seconds(trial.descriptor_hash, trial.fidelity, mean=options.seconds)
            seconds = predicted * math.exp(options.prediction_error * _normal("time", trial.seed))
        if options.sleep_jitter_seconds:
            seconds += random.uniform(0.0, options.sleep_jitter_seconds)
        _sleep(seconds, control)
        if options.fail_every and (trial.number + 1) % options.fail_every == 0:
            raise RuntimeError(f"synthetic failure of trial {trial.number}")
        if options.nan_every and (trial.number + 1) % options.nan_every == 0:
            raise TrialFailed(f"synthetic fitness of trial {trial.number} is not finite", kind="not_finite")
        fitness = _uniform(trial.descriptor_hash, trial.seed)
        return Outcome(
            TrialState.COMPLETED,
            fitness=fitness,
            metrics={"accuracy": fitness},
            seconds=time.perf_counter() - began,
        )

    def test(self, trial: Trial, *, control: Control) -> dict[str, Json]:
        return {"accuracy": _uniform("test", trial.descriptor_hash, trial.seed)}

    def _predicted_seconds(self, descriptor_hash: str, fidelity: Fidelity, *, mean: float) -> float:
        amount = fidelity.epochs * fidelity.fraction
        sigma = self._options.sigma if self._options.distribution == "lognormal" else 0.0
        # A lognormal variable has the mean exp(sigma^2 / 2).
        return mean * amount * math.exp(sigma * _normal("cost", descriptor_hash) - sigma**2 / 2)


def _uniform(*path: str | int) -> float:
    """A number in [0, 1) that follows from `path`."""
    digest = hashlib.blake2b("/".join(map(str, path)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def _normal(*path: str | int) -> float:
    """A standard normal number that follows from `path`."""
    return _NORMAL.inv_cdf(min(max(_uniform(*path), 1e-12), 1 - 1e-12))


def _sleep(seconds: float, control: Control) -> None:
    control.check()
    end = time.perf_counter() + seconds
    while (left := end - time.perf_counter()) > 0 and seconds:
        time.sleep(min(left, NAP_SECONDS))
        control.check()


def _append(path: Path, line: str) -> None:
    """One write in append mode: lines of several processes never mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
