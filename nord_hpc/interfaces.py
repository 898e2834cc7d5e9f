"""The Protocols between the parts of nord_hpc, with their contracts; implementations have folders of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from nord_hpc.trial import Examination, Fidelity, FinishedTrial, Json, Outcome, Proposal, Trial

if TYPE_CHECKING:
    import numpy as np
    import torch

    from nord_hpc.descriptor import NeuralDescriptor


NO_SETTINGS: Mapping[str, Json] = MappingProxyType({})


class SearchSpace(Protocol):
    """What can be sampled, mutated and crossed.

    A genotype is a JSON value that identifies a point of the space. Operators never change their arguments and take
    all randomness from the generator that is passed in: equal genotypes and generator states give equal results.
    Everything that an operator returns is contained in the space.
    """

    def sample(self, rng: np.random.Generator) -> Json:
        """A random genotype."""

    def mutate(self, genotype: Json, rng: np.random.Generator) -> Json:
        """A neighbour of `genotype`, different from it where the space has another point."""

    def crossover(self, first: Json, second: Json, rng: np.random.Generator) -> Json:
        """A genotype with parts of both."""

    def contains(self, genotype: Json) -> bool:
        """Whether `genotype` is a point of this space. Never raises."""

    def to_descriptor(self, genotype: Json) -> NeuralDescriptor:
        """The network that `genotype` stands for."""


# What only some spaces can do. A strategy that needs it says so when it is made, by a ValueError that names the space.


class HasNeighbours(Protocol):
    """A space whose points have finitely many neighbours."""

    def neighbours(self, genotype: Json) -> Iterator[Json]:
        """All points at one step, each once, in a fixed order, without `genotype` itself."""


class HasSize(Protocol):
    """A space that knows its number of genotypes."""

    def size(self) -> int | None:
        """How many genotypes there are; None for infinitely many."""


class HasEncoding(Protocol):
    """A space whose points can be given to a regression."""

    def encode(self, genotype: Json) -> list[float]:
        """Numbers that describe the point; equally many for all points."""


class HasPathEncoding(Protocol):
    """A space of cells; White et al., "BANANAS", arXiv 1910.11858."""

    def encode_paths(self, genotype: Json) -> list[float]:
        """For each possible path of operations from input to output, whether the cell has it: 1 or 0."""


class HasDecisions(Protocol):
    """A space whose points are sequences of choices, for policies that learn to choose."""

    def decisions(self) -> tuple[int, ...]:
        """The number of alternatives of each decision."""

    def from_decisions(self, choices: Sequence[int]) -> Json:
        """The point of these choices, one for each decision."""


class HasSkips(Protocol):
    """A space with decisions, some of which connect a layer with an earlier one (anchor points, Zoph and Le 2017)."""

    def skips(self) -> tuple[int | None, ...]:
        """For each decision the position of the last decision of the layer that a skip comes from; None: no skip."""


class HasSettings(Protocol):
    """A space whose points set fields of the job beside the network."""

    def settings(self, genotype: Json) -> dict[str, Json]:
        """Dotted names of fields to values, such as "training.optimizer.lr"; see `nord_hpc.job.Job.with_settings`."""


class HasInverse(Protocol):
    """A space that recognizes its networks."""

    def from_descriptor(self, descriptor: NeuralDescriptor) -> Json:
        """The point whose network this is.

        Raises:
            Infeasible: there is none.
        """


class Wait:
    """A strategy's answer to ask: nothing to propose until another result has been told."""


class Done:
    """A strategy's answer to ask: nothing to propose, ever."""


class Strategy(Protocol):
    """Proposes candidates and learns from their results, by ask and tell.

    One thread at a time. Asks may come in parallel: several before the first tell. All randomness comes from one
    generator that is part of the state; the proposals are a function of the options, the seed and the order of asks and
    tells. Failed and infeasible trials are told as such, without a score.

    Trials may be told that were never asked for, such as the first candidates of a job; they count like its own. A
    strategy that continues trials of lower fidelity has a class attribute `continues_trials` that is true.
    """

    def ask(self, number: int) -> Proposal | Wait | Done:
        """The next candidate, which will be trial `number`.

        Asked for the same number again, the strategy's earlier proposal for it was dropped and will never be told.
        """

    def tell(self, finished: FinishedTrial) -> None:
        """Learn what became of a trial. Each trial is told once, in commit order."""

    def independent_asks(self) -> int:
        """How many of the next asks give the same proposals whatever is told before. May be less, never more."""

    def state_dict(self) -> Json:
        """All that is needed to go on later, random state included, as JSON."""

    def load_state_dict(self, state: Json) -> None:
        """Go on from a state of the same strategy with the same options."""


class DataParallel(Protocol):
    """The collective operations of one gang, between its opening and its closing. All members call in the same order.

    A member that finds its partners gone raises `GangBroken`, never waits for ever.

    Attributes:
        name: of the backend, as in a job file.
        rank: of this member, 0 .. size - 1.
        size: members of the gang.
    """

    name: str
    rank: int
    size: int

    def all_gather(self, values_K: torch.Tensor) -> torch.Tensor:
        """The members' vectors, [size, K], in the order of their ranks. Equal K and dtype on all members."""

    def all_reduce_sum_(self, values_K: torch.Tensor) -> None:
        """Replace `values_K` by the sum over the members, in the backend's own order of additions."""

    def broadcast_(self, values_K: torch.Tensor, *, root: int) -> None:
        """Replace `values_K` by that of member `root`."""

    def close(self) -> None:
        """Free the backend; partners that wait for this member are released with `GangBroken`. May be repeated."""


class Gang(Protocol):
    """The ranks that evaluate one trial together, as one of them sees it.

    Attributes:
        rank: of this member within the gang; 0 leads.
        size: members.
    """

    rank: int
    size: int

    def connect(self) -> AbstractContextManager[DataParallel]:
        """Open the data-parallel backend between the members; closed on leaving, in every case."""


class Control(Protocol):
    """What the outside wants of an evaluation in progress. Evaluators call it between steps."""

    def check(self) -> None:
        """Return at once, or raise `SearchStopped`, or `TrialFailed` when the trial's time limit has passed."""


class Evaluator(Protocol):
    """Trial to outcome: by training, from a table, or by a formula."""

    def describe(self) -> str:
        """One line for people: what candidates are evaluated on."""

    def examine(
        self, descriptor: NeuralDescriptor, fidelity: Fidelity, settings: Mapping[str, Json] = NO_SETTINGS
    ) -> Examination:
        """What a trial will cost, on the master, before dispatch; without torch.

        Args:
            settings: fields of the job that the candidate sets.

        Raises:
            Infeasible: the candidate cannot be evaluated.
        """

    def evaluate(self, trial: Trial, *, gang: Gang, control: Control, keep_above: float | None) -> Outcome:
        """Evaluate a trial. Every member of the gang calls it; each returns the same outcome.

        Exceptions other than those of `Control` and `GangBroken` are failures of the candidate: the caller makes an
        outcome of them.

        Args:
            keep_above: the leader leaves the trained weights in the run folder before it returns, if the score (the
                fitness, negated where the job minimizes) is at least this; None: in any case.
        """

    def test(self, trial: Trial, *, control: Control) -> dict[str, Json]:
        """Metrics of a completed trial on the test part, from its kept weights; on one rank, once, after the search."""


class HasData(Protocol):
    """An evaluator that candidates are trained or scored on the user's data by."""

    def data(self) -> dict[str, Json]:
        """What is known of the data, kept with the run: shapes, the class index of each label, what was left out, and
        as "fingerprint" a digest of all samples and targets, by which a resume sees that they are still the same."""


class Transport(Protocol):
    """How the master reaches its workers. Never blocks for longer than it is told; ranks are numbered from 1."""

    def worker_ranks(self) -> tuple[int, ...]: ...

    def now(self) -> float:
        """Seconds on this transport's clock; only differences mean something."""

    def send(self, rank: int, message: Any) -> None:
        """Hand over a message; returns at once. Messages to one rank arrive in order."""

    def expel(self, rank: int) -> None:
        """End the process of a rank that does not answer any more, as far as this can be done from here."""

    def receive(self, timeout_seconds: float) -> Iterator[tuple[int, Any]]:
        """The (rank, message) pairs that have arrived; waits at most `timeout_seconds` for the first."""
