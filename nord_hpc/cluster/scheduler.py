"""Which candidates are proposed, and in which order their results reach the strategy: virtual order and arrival order.

Knows neither ranks nor time; the coordinator asks it what to run and hands it what became of it.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
from collections.abc import Mapping
from typing import Protocol

from nord_hpc.errors import BadInput, Infeasible, NordError, StoreError
from nord_hpc.interfaces import Done, Evaluator, SearchSpace, Strategy, Wait
from nord_hpc.job import Job
from nord_hpc.seeding import trial_seed
from nord_hpc.store.history import Entry, History, infeasible_outcome
from nord_hpc.trial import FinishedTrial, HistoryDigest, Json, Outcome, Proposal, Trial, TrialState

log = logging.getLogger(__name__)


class StrategyStuck(NordError):
    """The strategy waits for results although none is outstanding."""


class TrialMaker:
    """Makes a trial of a proposal: descriptor, hash, seed, predicted cost, or the reason why it is infeasible."""

    def __init__(self, job: Job, *, space: SearchSpace, evaluator: Evaluator) -> None:
        self._seed = job.seed
        self._full_fidelity = job.full_fidelity
        self._shards = job.resources.shards
        self._gang = job.resources.gang
        self._space = space
        self._evaluator = evaluator

    def make(self, number: int, proposal: Proposal, *, virtual_start: int) -> Trial:
        descriptor = self._space.to_descriptor(proposal.genotype)
        fidelity = proposal.fidelity or self._full_fidelity
        fields: dict[str, int | str] = {"cost": 1}
        try:
            descriptor_hash = descriptor.canonical_hash()
            examination = self._evaluator.examine(descriptor, fidelity)
            fields = {
                "cost": max(1, examination.cost),
                "n_parameters": examination.n_parameters,
                "multiply_adds": examination.multiply_adds,
                "memory_bytes": examination.memory_bytes,
            }
        except Infeasible as error:
            fields["infeasible"] = error.reason
            descriptor_hash = _text_hash(descriptor.to_json())
        return Trial(
            number=number,
            genotype=proposal.genotype,
            parents=proposal.parents,
            descriptor=descriptor.to_json(),
            descriptor_hash=descriptor_hash,
            fidelity=fidelity,
            seed=trial_seed(self._seed, number),
            shards=self._shards,
            gang=self._gang,
            virtual_start=virtual_start,
            virtual_finish=virtual_start + int(fields["cost"]),
            **fields,  # type: ignore[arg-type]
        )


def _text_hash(descriptor: Json) -> str:
    """A stand-in for the canonical hash of what has none, such as a graph with a cycle."""
    return hashlib.sha256(json.dumps(descriptor, sort_keys=True).encode()).hexdigest()


Step = Trial | FinishedTrial
"""What a scheduler does: it proposes a trial, or commits a finished one."""


class Scheduler(Protocol):
    """What the coordinator needs of an order.

    Attributes:
        uncommitted: proposed trials that are not committed, by number.
        finished: nothing is uncommitted and nothing more will be proposed.
    """

    uncommitted: dict[int, Trial]
    ledger: Ledger

    @property
    def finished(self) -> bool: ...

    def blocking(self) -> int | None:
        """The uncommitted trial whose result must come in before anything else can be proposed; None if none must."""

    def advance(self, *, room: int) -> list[Step]:
        """Commit and propose all that can be now; the commits and proposals in the order in which they were made.

        Args:
            room: how many more trials the ranks could take at once.
        """

    def finish(self, number: int, outcome: Outcome) -> None:
        """The final outcome of an uncommitted trial."""

    def restore(self, history: History, state: Json | None) -> tuple[list[Trial], list[Step]]:
        """Be where a recorded history ends: from a saved state on, or all over again.

        Returns:
            Trials that were uncommitted in that state; and the steps, from the first commit on without the proposals
            before that state, that lead to where the record ends and as far beyond as can be.
        """

    def state_dict(self) -> Json:
        """All that is needed to go on later, strategy included, beside the history itself."""


class Ledger:
    """Asks and tells, counted: the part that both orders share.

    Attributes:
        digest: of the history so far.
        n_proposed, n_committed: all trials, infeasible ones included.
        counted: proposed trials that count in the budget, i.e. feasible ones.
        over: the budget keeps the strategy from being asked.
        done: the strategy said that it has nothing more to propose.
        hopeless: why there is no sense in going on, when too many candidates in a row were infeasible.
    """

    def __init__(self, job: Job, *, strategy: Strategy, maker: TrialMaker) -> None:
        self.digest = HistoryDigest()
        self.n_proposed = 0
        self.n_committed = 0
        self.counted = 0
        self.over = False
        self.done = False
        self.hopeless: str | None = None
        self.expected: Mapping[int, Entry] = {}
        self._strategy = strategy
        self._maker = maker
        self._budget = job.budget.trials
        self._sign = 1.0 if job.objective.direction == "maximize" else -1.0
        self._infeasible_in_a_row = 0
        self._infeasible_limit = job.limits.infeasible_in_a_row
        self.strategy_name = job.strategy.name

    def independent_asks(self) -> int:
        return self._strategy.independent_asks()

    def ask(self, *, virtual_start: int) -> Trial | Wait | Done:
        """The next trial, Wait, or Done when the budget or the strategy is at its end."""
        if self.done:
            return Done()
        if self.hopeless is not None:
            return Wait()
        if self._budget is not None and self.counted >= self._budget:
            self.over = True
            return Done()
        answer = self._strategy.ask(self.n_proposed)
        if isinstance(answer, Done):
            self.done = True
        if not isinstance(answer, Proposal):
            return answer
        trial = self._maker.make(self.n_proposed, answer, virtual_start=virtual_start)
        self._compare(trial)
        self.n_proposed += 1
        self.counted += trial.infeasible is None
        return trial

    def commit(self, trial: Trial, outcome: Outcome) -> FinishedTrial:
        """Tell the strategy."""
        finished = self._scored(trial, outcome)
        self._strategy.tell(finished)
        self.digest.add(trial, outcome)
        self.n_committed += 1
        self._infeasible_in_a_row = self._infeasible_in_a_row + 1 if outcome.state is TrialState.INFEASIBLE else 0
        if self._infeasible_in_a_row >= self._infeasible_limit and self.hopeless is None:
            self.hopeless = (
                f"{self._infeasible_in_a_row} candidates in a row are infeasible, the last because {outcome.reason}; "
                f"set space or dataset so that they fit (or limits.infeasible_in_a_row higher)"
            )
        return finished

    def state_dict(self) -> Json:
        return {
            "n_proposed": self.n_proposed,
            "n_committed": self.n_committed,
            "counted": self.counted,
            "over": self.over or self.done,
            "infeasible_in_a_row": self._infeasible_in_a_row,
            "history_sha256": self.digest.hexdigest(),
            "strategy": self._strategy.state_dict(),
        }

    def restore(self, history: History, state: Json | None) -> list[FinishedTrial]:
        """Expect the recorded proposals again; with a saved state, begin behind the commits that it knows."""
        self.expected = history.entries
        if state is None:
            return []
        committed = [self._finished(history.entries[n]) for n in history.commit_order[: state["n_committed"]]]
        for finished in committed:
            self.digest.add(finished.trial, finished.outcome)
        if self.digest.hexdigest() != state["history_sha256"]:
            raise StoreError("the snapshot belongs to another history than the journal")
        self.n_proposed = state["n_proposed"]
        self.n_committed = state["n_committed"]
        self.counted = state["counted"]
        self._infeasible_in_a_row = state["infeasible_in_a_row"]
        self._strategy.load_state_dict(state["strategy"])
        return committed

    def check_not_stuck(self, uncommitted: Mapping[int, Trial]) -> None:
        if not uncommitted and not self.over and not self.done and self.hopeless is None:
            raise StrategyStuck(
                f"strategy {self.strategy_name} waits for results, but none is outstanding after "
                f"{self.n_committed} trials: it must propose a trial or say that it is done"
            )

    def check_replayed(self) -> None:
        """Every recorded proposal must have come again; then the records are no longer needed."""
        missing = [number for number in self.expected if number >= self.n_proposed]
        if missing:
            raise BadInput(
                f"{len(missing)} recorded trials, from {min(missing)} on, do not come again: the budget is less "
                f"than was already proposed, or order has changed; set budget.trials to "
                f"{self.counted + len(missing)} or more"
            )
        self.expected = {}

    def _finished(self, entry: Entry) -> FinishedTrial:
        assert entry.outcome is not None
        return self._scored(entry.trial, entry.outcome)

    def _scored(self, trial: Trial, outcome: Outcome) -> FinishedTrial:
        return FinishedTrial(trial, outcome, None if outcome.fitness is None else self._sign * outcome.fitness)

    def _compare(self, trial: Trial) -> None:
        """A replayed proposal must be the recorded one, or the recorded results belong to other candidates."""
        entry = self.expected.get(trial.number)
        if entry is None:
            return
        recorded = entry.trial
        if (recorded.descriptor_hash, recorded.seed, recorded.parents) != (
            trial.descriptor_hash,
            trial.seed,
            trial.parents,
        ):
            raise StoreError(
                f"trial {trial.number} comes out different from the recorded one ({trial.descriptor_hash[:12]} against "
                f"{recorded.descriptor_hash[:12]}): the job, its plug-in files or the nord_hpc version changed; "
                f"resume with what the run was started with, or start a new run folder"
            )


class VirtualOrder:
    """Results are told in the order of predicted finish on a virtual cluster of V gangs, whatever the real one does.

    At each virtual finish the result is committed and the freed virtual gang asks for its next trial. The history is
    thus a function of the job alone. Where the next asks depend on no result, they are made before the commits that
    virtual time puts before them, up to `run_ahead` beyond V.
    """

    def __init__(self, ledger: Ledger, *, virtual_gangs: int, run_ahead: int) -> None:
        self.ledger = ledger
        self.uncommitted: dict[int, Trial] = {}
        self._virtual_gangs = virtual_gangs
        self._limit = virtual_gangs + run_ahead
        self._outcomes: dict[int, Outcome] = {}
        self._now = 0
        self._free = virtual_gangs
        self._to_commit: list[tuple[int, int]] = []
        self._to_free: list[tuple[int, int]] = []

    @property
    def finished(self) -> bool:
        return not self.uncommitted and (self.ledger.over or self.ledger.done)

    def finish(self, number: int, outcome: Outcome) -> None:
        self._outcomes[number] = outcome

    def advance(self, *, room: int) -> list[Step]:
        steps: list[Step] = []
        self._fill(steps)
        while True:
            if self._to_commit and self._to_commit[0][1] in self._outcomes:
                event = heapq.heappop(self._to_commit)
                steps.append(self._commit(event[1]))
                if self._to_free and self._to_free[0] == event:
                    heapq.heappop(self._to_free)
                    self._pass(event)
                self._fill(steps)
            elif self._may_run_ahead():
                self._pass(heapq.heappop(self._to_free))
                self._fill(steps)
            else:
                break
        if self._free == self._virtual_gangs:
            self.ledger.check_not_stuck(self.uncommitted)
        return steps

    def restore(self, history: History, state: Json | None) -> tuple[list[Trial], list[Step]]:
        told = self.ledger.restore(history, state)
        if state is not None:
            self._now, self._free = state["now"], state["free"]
            self._to_commit = [(finish, number) for finish, number in state["to_commit"]]
            self._to_free = [(finish, number) for finish, number in state["to_free"]]
            self.uncommitted = {number: history.entries[number].trial for _, number in sorted(self._to_commit)}
        known = {finished.trial.number for finished in told}
        self._outcomes = {n: e.outcome for n, e in history.entries.items() if e.outcome is not None and n not in known}
        open_trials = list(self.uncommitted.values())
        steps = self.advance(room=0)
        self.ledger.check_replayed()
        return open_trials, [*told, *steps]

    def blocking(self) -> int | None:
        return self._to_commit[0][1] if self._to_commit else None

    def state_dict(self) -> Json:
        own = {"now": self._now, "free": self._free, "to_commit": self._to_commit, "to_free": self._to_free}
        return {**self.ledger.state_dict(), **own}

    def _commit(self, number: int) -> FinishedTrial:
        return self.ledger.commit(self.uncommitted.pop(number), self._outcomes.pop(number))

    def _pass(self, event: tuple[int, int]) -> None:
        self._now = event[0]
        self._free += 1

    def _may_run_ahead(self) -> bool:
        within = bool(self._to_free) and len(self.uncommitted) < self._limit
        return within and self.ledger.independent_asks() > self._free

    def _fill(self, steps: list[Step]) -> None:
        """Let the free virtual gangs ask, at the present virtual time."""
        while self._free and len(self.uncommitted) < self._limit:
            trial = self.ledger.ask(virtual_start=self._now)
            if not isinstance(trial, Trial):
                return
            self._free -= 1
            self.uncommitted[trial.number] = trial
            event = (trial.virtual_finish, trial.number)
            heapq.heappush(self._to_commit, event)
            heapq.heappush(self._to_free, event)
            steps.append(trial)
            if trial.infeasible is not None:
                self._outcomes[trial.number] = infeasible_outcome(trial)


class ArrivalOrder:
    """Results are told as they come in, and asks are made when ranks are free: not repeatable, except in a resume."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.uncommitted: dict[int, Trial] = {}
        self._arrived: list[tuple[int, Outcome]] = []

    @property
    def finished(self) -> bool:
        return not self.uncommitted and (self.ledger.over or self.ledger.done)

    def finish(self, number: int, outcome: Outcome) -> None:
        self._arrived.append((number, outcome))

    def advance(self, *, room: int) -> list[Step]:
        steps: list[Step] = [*self._commit_arrived()]
        while room > 0:
            trial = self._ask()
            if trial is None:
                self.ledger.check_not_stuck(self.uncommitted)
                break
            steps.append(trial)
            if trial.infeasible is None:
                room -= 1
            else:
                self.finish(trial.number, infeasible_outcome(trial))
                steps += self._commit_arrived()
        return steps

    def restore(self, history: History, state: Json | None) -> tuple[list[Trial], list[Step]]:
        """Asks and tells in the recorded order; results that were not committed are committed by number after that."""
        steps: list[Step] = [*self.ledger.restore(history, state)]
        if state is not None:
            self.uncommitted = {number: history.entries[number].trial for number in state["uncommitted"]}
        open_trials = list(self.uncommitted.values())
        for number in range(self.ledger.n_proposed, len(history.entries)):
            self._replay_commits(history, history.entries[number].after, steps)
            trial = self._ask()
            if trial is None:
                break
            steps.append(trial)
        self.ledger.check_replayed()
        self._replay_commits(history, len(history.commit_order), steps)
        for number in sorted(self.uncommitted):
            outcome = history.entries[number].outcome
            if outcome is not None:
                self.finish(number, outcome)
        return open_trials, [*steps, *self._commit_arrived()]

    def blocking(self) -> int | None:
        return None

    def state_dict(self) -> Json:
        return {**self.ledger.state_dict(), "uncommitted": sorted(self.uncommitted)}

    def _replay_commits(self, history: History, stop: int, steps: list[Step]) -> None:
        for number in history.commit_order[self.ledger.n_committed : stop]:
            outcome = history.entries[number].outcome
            assert outcome is not None
            self.finish(number, outcome)
            steps += self._commit_arrived()

    def _ask(self) -> Trial | None:
        trial = self.ledger.ask(virtual_start=0)
        if not isinstance(trial, Trial):
            return None
        self.uncommitted[trial.number] = trial
        return trial

    def _commit_arrived(self) -> list[FinishedTrial]:
        committed = [self.ledger.commit(self.uncommitted.pop(number), outcome) for number, outcome in self._arrived]
        self._arrived.clear()
        return committed


def make_scheduler(job: Job, *, strategy: Strategy, maker: TrialMaker) -> Scheduler:
    """The order that the job asks for."""
    ledger = Ledger(job, strategy=strategy, maker=maker)
    if job.order.mode == "arrival":
        return ArrivalOrder(ledger)
    return VirtualOrder(ledger, virtual_gangs=job.order.virtual_gangs, run_ahead=job.order.run_ahead)
