"""Makes a trial of a proposal: descriptor, hash, seed, predicted cost, or the reason why it is infeasible."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import Infeasible
from nord_hpc.interfaces import Evaluator, SearchSpace
from nord_hpc.job import Job
from nord_hpc.seeding import trial_seed
from nord_hpc.trial import Examination, Fidelity, Json, Proposal, Trial

MANY_LAYERS = 2000
LARGEST_DESCRIPTOR = 24 * 2**20
"""Bytes of JSON; genotype, descriptor and what stands beside them must fit a record of the journal."""


@dataclass(frozen=True, slots=True)
class Base:
    """What a trial that goes on from another one takes from it."""

    seed: int
    fidelity: Fidelity


class TrialMaker:
    """Makes trials; see the module.

    Args:
        keeps_states: the strategy continues trials, so those of lower fidelity keep their trained state.
    """

    def __init__(self, job: Job, *, space: SearchSpace, evaluator: Evaluator, keeps_states: bool = False) -> None:
        self._job = job
        self._full_fidelity = job.full_fidelity
        self._space = space
        self._evaluator = evaluator
        self._settings_of = getattr(space, "settings", None)
        self._keeps_states = keeps_states

    def make(self, number: int, proposal: Proposal, *, virtual_start: int, base: Base | None = None) -> Trial:
        """The trial of a proposal, whose predicted cost is that of the part which is new.

        Args:
            base: of the trial that the proposal continues.
        """
        descriptor = self._space.to_descriptor(proposal.genotype)
        fidelity = proposal.fidelity or self._full_fidelity
        settings = {} if self._settings_of is None else self._settings_of(proposal.genotype)
        examination = Examination(cost=1)
        infeasible = None
        resources = self._job.resources
        try:
            _check_size(descriptor)
            descriptor_hash = descriptor.canonical_hash()
            if settings:
                resources = self._job.with_settings(settings).resources
            examination = self._examine(descriptor, fidelity, settings, base)
        except Infeasible as error:
            infeasible = error.reason
            descriptor_hash = _text_hash(descriptor.to_json())
        cost = max(1, examination.cost)
        return Trial(
            number=number,
            genotype=proposal.genotype,
            parents=proposal.parents,
            descriptor=descriptor.to_json(),
            descriptor_hash=descriptor_hash,
            fidelity=fidelity,
            seed=trial_seed(self._job.seed, number) if base is None else base.seed,
            shards=resources.shards,
            gang=resources.gang_of(cost),
            cost=cost,
            n_parameters=examination.n_parameters,
            multiply_adds=examination.multiply_adds,
            memory_bytes=examination.memory_bytes,
            virtual_start=virtual_start,
            virtual_finish=virtual_start + cost,
            infeasible=infeasible,
            settings=settings,
            continues=proposal.continues,
            keeps_state=self._keeps_states and fidelity != self._full_fidelity,
        )

    def _examine(
        self, descriptor: NeuralDescriptor, fidelity: Fidelity, settings: Mapping[str, Json], base: Base | None
    ) -> Examination:
        more = (settings,) if settings else ()  # evaluators of the user's own need not know of settings
        whole = self._evaluator.examine(descriptor, fidelity, *more)
        if base is None:
            return whole
        before = self._evaluator.examine(descriptor, base.fidelity, *more)
        return Examination(whole.cost - before.cost, whole.n_parameters, whole.multiply_adds, whole.memory_bytes)


def _check_size(descriptor: NeuralDescriptor) -> None:
    """Refuse what no record and no message can hold; only descriptors of many layers are measured."""
    if len(descriptor.layers) < MANY_LAYERS:
        return
    n_bytes = len(json.dumps(descriptor.to_json()))
    if n_bytes > LARGEST_DESCRIPTOR:
        raise Infeasible(f"its descriptor has {n_bytes:,} bytes as JSON, more than the limit of {LARGEST_DESCRIPTOR:,}")


def _text_hash(descriptor: Json) -> str:
    """A stand-in for the canonical hash of what has none, such as a graph with a cycle."""
    return hashlib.sha256(json.dumps(descriptor, sort_keys=True).encode()).hexdigest()
