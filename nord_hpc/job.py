"""The job file: what to search, how, on what data, with what budget. Loads, overrides, validates, says what to set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from nord_hpc import registry
from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.explanations import explain
from nord_hpc.trial import Fidelity, Json

MOST_REMEMBERED = 1000
"""Jobs of candidates that set fields, which take half a millisecond to make."""


class Settings(BaseModel):
    """A section of the job file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Named(BaseModel):
    """A section that chooses a class by `name`; all other keys are options of that class, checked by its `Options`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class DatasetSettings(Named):
    """Which data, and how much of it.

    Attributes:
        path: folder or file of the data, for data sets that need one; relative to the job file.
        fraction: share of the training part that is used at all, above 0 and at most 1.
        validation: share of the training part that is carved out for validation, stratified, by the data's own seed.
        split_seed: the data's own seed, so that every job sees one split.
        storage: where the arrays live; `auto` chooses by size.
        stage: folder on the own disk of each node, such as $TMPDIR, where prepared arrays are kept in place of the
            cache; variables of the environment are filled in on the node.
    """

    name: str = "digits"
    path: str | None = None
    fraction: float = Field(default=1.0, gt=0, le=1)
    validation: float = Field(default=0.2, gt=0, lt=1)
    split_seed: int = Field(default=0, ge=0)
    storage: Literal["auto", "device", "host", "mmap"] = "auto"
    stage: str | None = None


class OptimizerSettings(Named):
    """`adam`, `adamw`, `sgd` or `rmsprop`, its learning rate, and torch's own further options of it."""

    name: str = "adam"
    lr: float = Field(default=0.001, gt=0)


class EvaluatorSettings(Named):
    """How a candidate gets its fitness: by `training`, or by a table or formula."""

    name: str = "training"


class TrainingSettings(Settings):
    """How a candidate is trained.

    Attributes:
        epochs: of a trial of full fidelity.
        batch_size: the global one, over all shards.
        schedule: of the learning rate, over all steps of a trial: `cosine` and `linear` bring it down to zero.
        clip_norm: norm that the gradient of a step is scaled down to where it is larger; None never does.
        scale_lr: `linear` multiplies the learning rate by the number of shards.
        sync_batch_norm: batch statistics over the whole batch and not each shard alone; needs the fast reduction.
        precision: `auto` is bf16 on GPUs that have it and fp32 on CPUs.
        validation_batch_size: samples scored at once.
    """

    epochs: int = Field(default=1, ge=0)
    batch_size: int = Field(default=64, ge=1)
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    clip_norm: float | None = Field(default=None, gt=0)
    scale_lr: Literal["none", "linear"] = "none"
    sync_batch_norm: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    validation_batch_size: int = Field(default=500, ge=1)


class ObjectiveSettings(Settings):
    """What the search optimizes, on the validation part.

    Attributes:
        test: whether the best trial is scored on the test part, once, at the end.
    """

    metric: str = "accuracy"
    direction: Literal["maximize", "minimize"] = "maximize"
    test: bool = True


class BudgetSettings(Settings):
    """When the search ends: the first limit that is reached. Infeasible candidates do not count as trials.

    Attributes:
        hours: of wall time, over all lives of the search.
        simulated_seconds: of virtual time, which is the training time of a table where a table is the evaluator. A
            candidate that would end after it is dropped: neither evaluated nor told.
        simulated: what simulated_seconds limits: the `span` of a search on order.virtual_gangs, or the `sum` over all
            trials.
    """

    trials: int | None = Field(default=None, ge=1)
    hours: float | None = Field(default=None, gt=0)
    simulated_seconds: float | None = Field(default=None, gt=0)
    simulated: Literal["span", "sum"] = "span"

    @model_validator(mode="after")
    def _one_is_set(self) -> BudgetSettings:
        if self.trials is None and self.hours is None and self.simulated_seconds is None:
            raise ValueError("set trials, hours, simulated_seconds, or several of them")
        return self


class CandidateSettings(Settings):
    """What the search does with candidates that are known already.

    Attributes:
        duplicates: `reuse` takes over the outcome of a candidate that differs from an earlier one in nothing but its
            number: same canonical network, fidelity and settings. `retrain` evaluates it again, with its own seed.
        initial: files of descriptors or genotypes (JSON) that are the first candidates.
        warm_start: run folder of an earlier search of the same space, data, training and objective; its completed
            trials of full fidelity are told to the strategy first, and do not count in the budget.
    """

    duplicates: Literal["reuse", "retrain"] = "retrain"
    initial: tuple[Path, ...] = ()
    warm_start: Path | None = None


class ResourceSettings(Settings):
    """What a trial may use.

    Attributes:
        shards: logical parts of each batch; part of the trial, as the fitness depends on it.
        gang: ranks that a trial may use, a divisor of shards; fewer are used where fewer exist. `auto` gives a trial
            as many as bring its predicted time on one rank down to gang_seconds.
        max_gang: the most ranks that `auto` gives, a divisor of shards; None for all shards.
        gang_seconds: predicted time that `auto` aims at.
        spares: workers that wait to take the places of ranks that die, one of them the master's. Needs an MPI that
            survives deaths.
        fault_tolerance: `auto` lets the other ranks outlive the death of one where the MPI can do it; `none` leaves
            every death to a restart.
        backend: between the ranks of a gang; `auto` is horovod if present, else torch_ddp.
        reduction: `exact` adds the shards' gradients in one order, so that the fitness does not depend on the ranks;
            `fast` leaves the sum to the backend. `auto` is exact on CPUs up to 8 shards, else fast.
        threads: of each rank.
        device: `auto` is the GPU where there is one.
    """

    shards: int = Field(default=1, ge=1)
    gang: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    max_gang: int | None = Field(default=None, ge=1)
    gang_seconds: float = Field(default=30.0, gt=0)
    spares: int = Field(default=0, ge=0)
    fault_tolerance: Literal["auto", "none"] = "auto"
    backend: str = "auto"
    reduction: Literal["auto", "exact", "fast"] = "auto"
    threads: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _backend_is_known(self) -> ResourceSettings:
        known = ["auto", *registry.names("backend")]
        if self.backend not in known and registry.plugin_file(self.backend) is None:
            hint = registry.did_you_mean(self.backend, known)
            raise ValueError(
                f"backend {self.backend!r} is unknown; set one of {', '.join(known)}, or FILE.py:CLASS{hint}"
            )
        return self

    @model_validator(mode="after")
    def _gang_divides_shards(self) -> ResourceSettings:
        for name, value in (("gang", self.gang), ("max_gang", self.max_gang)):
            if isinstance(value, int) and self.shards % value:
                raise ValueError(
                    f"{name} {value} does not divide shards {self.shards}; set {name} to one of "
                    f"{', '.join(map(str, self._divisors()))}, or shards to a multiple of {value}"
                )
        return self

    @property
    def largest_gang(self) -> int:
        """The most ranks that a trial of this job may use."""
        return (self.max_gang or self.shards) if self.gang == "auto" else self.gang

    def gang_of(self, cost_microseconds: int) -> int:
        """The ranks that a trial of that predicted cost may use: a function of the job and the trial alone."""
        if self.gang != "auto":
            return self.gang
        wanted = cost_microseconds / 1e6 / self.gang_seconds
        fitting = [n for n in self._divisors() if n <= self.largest_gang]
        return next((n for n in fitting if n >= wanted), fitting[-1])

    def _divisors(self) -> list[int]:
        return [n for n in range(1, self.shards + 1) if self.shards % n == 0]

    @property
    def exact(self) -> bool:
        """Whether the fitness of a trial is independent of the ranks that train it."""
        if self.reduction == "auto":
            return self.device != "cuda" and self.shards <= 8
        return self.reduction == "exact"


class OrderSettings(Settings):
    """In which order results reach the strategy.

    Attributes:
        mode: `virtual` is repeatable: results are told in the order of predicted finish. `arrival` is not.
        virtual_gangs: trials in flight in virtual time; at least 1.5 times the real gangs keeps these busy.
        run_ahead: proposals beyond that, made early where they depend on no result.
    """

    mode: Literal["virtual", "arrival"] = "virtual"
    virtual_gangs: int = Field(default=8, ge=1)
    run_ahead: int = Field(default=8, ge=0)


class LimitSettings(Settings):
    """What ends a trial, or the search, before its time.

    Attributes:
        attempts: starts of a trial whose ranks were lost or hung, before it counts as failed.
        trial_seconds: wall time of one attempt; None for 60 seconds plus 30 times the predicted time.
        memory_gib: estimated memory of one rank above which a candidate is infeasible.
        grace_seconds: from a request to stop until the search ends even if busy ranks have not left their trials.
        restarts: of mpirun by `nord-hpc run -n` and `resume -n`, in a row without a trial finished.
        lost_host_seconds: for which a host or its network may be silent before its ranks count as lost.
        infeasible_in_a_row: infeasible candidates in a row that end the job, as the space and data do not fit.
    """

    attempts: int = Field(default=2, ge=1)
    trial_seconds: float | None = Field(default=None, gt=0)
    memory_gib: float = Field(default=4.0, gt=0)
    grace_seconds: float = Field(default=8.0, gt=0)
    restarts: int = Field(default=3, ge=0)
    lost_host_seconds: int = Field(default=15, ge=6)
    infeasible_in_a_row: int = Field(default=1000, ge=1)


class CheckpointSettings(Settings):
    """What is kept: the weights of the best `keep_weights` trials, at least those of the best one."""

    keep_weights: int = Field(default=3, ge=1)


class CostSettings(Settings):
    """Coefficients of the predicted cost of a trial, which orders the results in virtual time. Never refitted.

    A training step costs `step_microseconds` + layers x `layer_microseconds`, for each shard, and each sample its
    forward multiply-adds / `multiply_adds_per_microsecond` (three times that for training).
    """

    step_microseconds: float = Field(default=300.0, ge=0)
    layer_microseconds: float = Field(default=60.0, ge=0)
    multiply_adds_per_microsecond: float = Field(default=4000.0, gt=0)


class Job(Settings):
    """A whole job file, validated. Relative paths and plug-in files are looked for in `folder`.

    Attributes:
        code: further plug-in files, such as those of layers that descriptors name as "FILE.py:CLASS".
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    dataset: DatasetSettings = DatasetSettings()
    space: Named
    strategy: Named
    candidates: CandidateSettings = CandidateSettings()
    evaluator: EvaluatorSettings = EvaluatorSettings()
    training: TrainingSettings = TrainingSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    budget: BudgetSettings
    resources: ResourceSettings = ResourceSettings()
    order: OrderSettings = OrderSettings()
    limits: LimitSettings = LimitSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    cost: CostSettings = CostSettings()
    code: tuple[str, ...] = ()

    _folder: Path = PrivateAttr(default=Path("."))
    _with_settings: dict[str, Job] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _batch_fits_shards(self) -> Job:
        batch, shards = self.training.batch_size, self.resources.shards
        if batch % shards:
            below, above = batch - batch % shards, batch + shards - batch % shards
            choices = f"{below} or {above}" if below else str(above)
            raise ValueError(
                f"training.batch_size {batch} is not divisible by resources.shards {shards}; set batch_size to "
                f"{choices}"
            )
        if batch // shards < 2:
            raise ValueError(
                f"training.batch_size {batch} leaves {batch // shards} sample to each of {shards} shards, and batch "
                f"normalization needs 2; set batch_size to {2 * shards} or more"
            )
        return self

    @model_validator(mode="after")
    def _simulated_time_is_virtual(self) -> Job:
        if self.budget.simulated_seconds is not None and self.order.mode != "virtual":
            raise ValueError("budget.simulated_seconds is time of the virtual order; set order.mode to virtual")
        return self

    @property
    def folder(self) -> Path:
        return self._folder

    def with_settings(self, settings: Mapping[str, Json]) -> Job:
        """The job with the fields that a candidate sets, such as "training.optimizer.lr"; equal calls are remembered.

        A candidate may set fields of `training`, and `resources.gang` and `resources.shards`; a gang that does not
        divide the job's shards becomes the number of shards, too. Names without a dot are the evaluator's own.

        Raises:
            Infeasible: these values do not go together, or a field is not one that a candidate may set.
        """
        key = json.dumps(dict(settings), sort_keys=True)
        known = self._with_settings.get(key)
        if known is None:
            known = self._replaced(settings)
            if len(self._with_settings) >= MOST_REMEMBERED:
                self._with_settings.clear()
            self._with_settings[key] = known
        return known

    def _replaced(self, settings: Mapping[str, Json]) -> Job:
        data = self.to_json()
        for name, value in settings.items():
            *path, last = name.split(".")
            if not path:
                continue
            if path[0] != "training" and name not in ("resources.gang", "resources.shards"):
                raise Infeasible(f"a candidate sets {name}: only training.*, resources.gang and .shards can be set")
            section = data
            for part in path:
                section = section.setdefault(part, {})
            section[last] = value
        gang = settings.get("resources.gang")
        if gang is not None and "resources.shards" not in settings and data["resources"]["shards"] % gang:
            data["resources"]["shards"] = gang
        try:
            job = Job.model_validate(data)
        except ValidationError as error:
            raise Infeasible(f"its settings do not go together: {explain(error, models=(Job,))}") from error
        job._folder = self._folder
        return job

    @property
    def full_fidelity(self) -> Fidelity:
        return Fidelity(epochs=self.training.epochs)

    def to_json(self) -> dict[str, Json]:
        """The resolved job; `from_mapping` of it gives an equal job."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_json(), sort_keys=False, width=100)


def load(path: Path, *, overrides: Iterable[str] = ()) -> Job:
    """Read a job file, apply overrides such as "budget.trials=10", and validate it all, options of classes included.

    Raises:
        BadInput: one line with the file, the field, and what to set.
    """
    return from_mapping(read_mapping(path, overrides=overrides), folder=path.parent, source=str(path))


def read_mapping(path: Path, *, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What stands in a job file, with overrides, not validated. See `load`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadInput(f"{path}: cannot be read: {reason}") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise BadInput(
            f"{path}: a job file is a mapping with name, space, strategy and budget, not {type(data).__name__}"
        )
    for override in overrides:
        _override(data, override)
    return data


def from_mapping(data: Mapping[str, Any], *, folder: Path, source: str = "job") -> Job:
    """Validate a job given as a mapping. See `load`."""
    try:
        job = Job.model_validate(data)
    except ValidationError as error:
        raise BadInput(f"{source}: {explain(error, models=(Job,))}") from error
    updates = {
        kind: _with_options(kind, getattr(job, kind), folder=folder, source=source)
        for kind in ("dataset", "space", "strategy", "evaluator")
    }
    candidates = job.candidates
    paths = {
        "initial": tuple((folder / file).resolve() for file in candidates.initial),
        "warm_start": None if candidates.warm_start is None else (folder / candidates.warm_start).resolve(),
    }
    job = job.model_copy(update={**updates, "candidates": candidates.model_copy(update=paths)})
    job._folder = folder
    job._with_settings = {}
    return job


def options_of(kind: str, section: Named, *, folder: Path) -> tuple[Any, BaseModel]:
    """The class that a section names, and its validated options."""
    cls = registry.resolve(kind, section.name, folder=folder)
    if not hasattr(cls, "Options"):
        raise BadInput(f"{section.name!r} is a {kind} without Options; give its class a pydantic model of that name")
    return cls, cls.Options.model_validate(section.options)


def _with_options(kind: str, section: Named, *, folder: Path, source: str) -> Named:
    """The section with the defaults of its class filled in."""
    try:
        _, options = options_of(kind, section, folder=folder)
    except BadInput as error:
        raise BadInput(f"{source}: {kind}.name: {error}") from error
    except ValidationError as error:
        cls = registry.resolve(kind, section.name, folder=folder)
        raise BadInput(f"{source}: {explain(error, prefix=(kind,), models=(cls.Options, type(section)))}") from error
    # Paths are given relative to the job file, and stay right when the job moves to its run folder.
    paths = {name: (folder / value).resolve() for name, value in options if isinstance(value, Path)}
    resolved = options.model_copy(update=paths).model_dump(mode="json")
    return type(section).model_validate({**section.model_dump(), **resolved})


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise BadInput(f"--set {override}: is not FIELD=VALUE, such as --set budget.trials=10")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {override}: the value is not YAML") from error
    for depth, part in enumerate(parts[:-1], 1):
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise BadInput(f"--set {override}: {'.'.join(parts[:depth])} is a value, not a section")
    data[parts[-1]] = value
