"""Asks and tells, counted: what all orders share, with the budget, first candidates, and reuse of equal ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from nord_hpc.cluster.first_candidates import FirstCandidate
from nord_hpc.cluster.trial_maker import Base, TrialMaker
from nord_hpc.errors import BadInput, NordError, StoreError
from nord_hpc.interfaces import Done, Strategy, Wait
from nord_hpc.job import Job
from nord_hpc.store.history import Entry, History, infeasible_outcome, reused_outcome
from nord_hpc.trial import FinishedTrial, HistoryDigest, Json, Outcome, Proposal, Trial, TrialState


class StrategyStuck(NordError):
    """The strategy waits for results although none is outstanding."""


class Dropped:
    """An answer to ask: the candidate would have passed the simulated budget, and is forgotten."""


class _Twin(NamedTuple):
    number: int
    virtual_finish: int


class Ledger:
    """Asks and tells, counted.

    Attributes:
        digest: of the history so far.
        n_proposed, n_committed: all trials, infeasible ones included.
        counted: proposed trials that count in the budget, i.e. feasible ones that no other run evaluated.
        over: the budget keeps the strategy from being asked.
        done: the strategy said that it has nothing more to propose.
        hopeless: why there is no sense in going on, when too many candidates in a row were infeasible.
    """

    def __init__(
        self, job: Job, *, strategy: Strategy, maker: TrialMaker, first: Sequence[FirstCandidate] = ()
    ) -> None:
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
        self._first = first
        self._budget = job.budget
        self._simulated = 0
        self._sign = 1.0 if job.objective.direction == "maximize" else -1.0
        self._infeasible_in_a_row = 0
        self._infeasible_limit = job.limits.infeasible_in_a_row
        self._reuses = job.candidates.duplicates == "reuse"
        # Of trials that others may take over: the first of each kind, and its outcome once it is committed.
        self._twins: dict[str, _Twin] = {}
        self._shared: dict[int, Outcome] = {}
        # Of trials that others may go on from.
        self._bases: dict[int, Base] = {}
        self.strategy_name = job.strategy.name

    def independent_asks(self) -> int:
        n_first = max(0, len(self._first) - self.n_proposed)
        # A strategy that is told of candidates that it did not propose may end its own beginning earlier.
        return n_first if self._first else self._strategy.independent_asks()

    def ask(self, *, virtual_start: int) -> Trial | Wait | Done | Dropped:
        """The next trial; Done when the budget or the strategy is at its end."""
        if self.done:
            return Done()
        if self.hopeless is not None:
            return Wait()
        if self._budget.trials is not None and self.counted >= self._budget.trials:
            self.over = True
            return Done()
        number = self.n_proposed
        first = self._first[number] if number < len(self._first) else None
        answer = Proposal(first.genotype) if first is not None else self._strategy.ask(number)
        if isinstance(answer, Done):
            self.done = True
        if not isinstance(answer, Proposal):
            return answer
        base = None if answer.continues is None else self._bases[answer.continues]
        trial = self._maker.make(number, answer, virtual_start=virtual_start, base=base)
        if first is not None and first.outcome is not None and trial.infeasible is None:
            trial = replace(trial, cost=1, virtual_finish=virtual_start + 1, imported=first.source)
        trial = self._or_reused(trial)
        if self._passes_budget(trial):
            return Done() if self.over else Dropped()
        self._compare(trial)
        self.n_proposed += 1
        self.counted += trial.infeasible is None and trial.imported is None
        self._simulated += trial.cost
        self._remember(trial)
        return trial

    def known_outcome(self, trial: Trial) -> Outcome | None:
        """The outcome of a trial that is not evaluated, as far as it is there by now."""
        if trial.infeasible is not None:
            return infeasible_outcome(trial)
        if trial.imported is not None:
            return self._first[trial.number].outcome
        if trial.reuses is not None:
            shared = self._shared.get(trial.reuses)
            return None if shared is None else reused_outcome(trial, shared)
        return None

    def commit(self, trial: Trial, outcome: Outcome) -> FinishedTrial:
        """Tell the strategy."""
        finished = self._scored(trial, outcome)
        self._strategy.tell(finished)
        self.digest.add(trial, outcome)
        self.n_committed += 1
        self._share(trial, outcome)
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
            "simulated": self._simulated,
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
        for number in range(state["n_proposed"]):
            self._remember(history.entries[number].trial)
        for finished in committed:
            self.digest.add(finished.trial, finished.outcome)
            self._share(finished.trial, finished.outcome)
        if self.digest.hexdigest() != state["history_sha256"]:
            raise StoreError("the snapshot belongs to another history than the journal")
        self.n_proposed = state["n_proposed"]
        self.n_committed = state["n_committed"]
        self.counted = state["counted"]
        self._simulated = state["simulated"]
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

    def _or_reused(self, trial: Trial) -> Trial:
        """The trial, or the same as one that takes over the outcome of an equal one, committed or in flight."""
        if not self._reuses or not trial.runs:
            return trial
        twin = self._twins.get(_kind(trial))
        if twin is None:
            return trial
        # The twin is committed before, so that its outcome is there; it takes no time of its own.
        finish = max(trial.virtual_start + 1, twin.virtual_finish)
        return replace(trial, reuses=twin.number, cost=1, virtual_finish=finish, keeps_state=False)

    def _remember(self, trial: Trial) -> None:
        if trial.keeps_state:
            self._bases[trial.number] = Base(trial.seed, trial.fidelity)
        if self._reuses and trial.infeasible is None and trial.reuses is None:
            self._twins.setdefault(_kind(trial), _Twin(trial.number, trial.virtual_finish))

    def _share(self, trial: Trial, outcome: Outcome) -> None:
        if self._reuses and trial.reuses is None:
            self._shared[trial.number] = outcome

    def _passes_budget(self, trial: Trial) -> bool:
        """Whether the trial would end behind the simulated budget; its span is a matter of each virtual gang."""
        seconds = self._budget.simulated_seconds
        if seconds is None:
            return False
        used = trial.virtual_finish if self._budget.simulated == "span" else self._simulated + trial.cost
        passes = used > seconds * 1e6
        self.over = self.over or (passes and self._budget.simulated == "sum")
        return passes

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
        if _identity(recorded) != _identity(trial):
            raise StoreError(
                f"trial {trial.number} comes out different from the recorded one ({trial.descriptor_hash[:12]} against "
                f"{recorded.descriptor_hash[:12]}): the job, its plug-in files or the nord_hpc version changed; "
                f"resume with what the run was started with, or start a new run folder"
            )


def _identity(trial: Trial) -> tuple[Json, ...]:
    return trial.descriptor_hash, trial.seed, trial.parents, dict(trial.settings), trial.continues, trial.reuses


def _kind(trial: Trial) -> str:
    """Equal for trials that differ in nothing but their seed. Data and objective are the job's, equal for all."""
    fields = [trial.descriptor_hash, trial.fidelity.to_json(), dict(trial.settings), trial.shards]
    return json.dumps(fields, sort_keys=True)
