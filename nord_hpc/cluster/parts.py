"""Makes the parts of a search from its job: space, strategy, evaluator, trial maker, and the run folder."""

from __future__ import annotations

from pathlib import Path

from nord_hpc import job as jobs
from nord_hpc.cluster import first_candidates
from nord_hpc.cluster.trial_maker import TrialMaker
from nord_hpc.errors import BadInput
from nord_hpc.interfaces import Evaluator, SearchSpace, Strategy
from nord_hpc.job import Job
from nord_hpc.seeding import derived_seed
from nord_hpc.store.run_folder import RunFolder


def make_evaluator(job: Job, weights: Path) -> Evaluator:
    cls, options = jobs.options_of("evaluator", job.evaluator, folder=job.folder)
    evaluator: Evaluator = cls(options, job=job, folder=job.folder, weights_folder=weights)
    return evaluator


def make_space(job: Job) -> SearchSpace:
    cls, options = jobs.options_of("space", job.space, folder=job.folder)
    space: SearchSpace = cls(options)
    return space


def make_maker(job: Job, evaluator: Evaluator) -> tuple[Strategy, TrialMaker]:
    """The strategy, and what makes trials of its proposals."""
    space = make_space(job)
    cls, options = jobs.options_of("strategy", job.strategy, folder=job.folder)
    seed = derived_seed(job.seed, "strategy")
    strategy: Strategy = cls(options, space=space, seed=seed, full_fidelity=job.full_fidelity)
    continues = bool(getattr(strategy, "continues_trials", False))
    if continues and job.training.schedule != "constant":
        raise BadInput(
            f"training.schedule: {job.training.schedule} depends on the number of epochs, which strategy "
            f"{job.strategy.name} raises on the way; set constant"
        )
    return strategy, TrialMaker(job, space=space, evaluator=evaluator, keeps_states=continues)


def create_run_folder(path: Path, job: Job) -> RunFolder:
    """A new run folder, with all that a resume will need; `check` has accepted the job."""
    first = first_candidates.gather(job, make_space(job))
    folder = RunFolder.create(path, job)
    if first:
        first_candidates.save(folder.first_candidates_file, first)
    return folder
