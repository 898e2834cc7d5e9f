"""The evaluator that trains: descriptor to network to fitness on the validation part, and to a score on the test part.

The master examines candidates with it, by integer arithmetic and without torch; workers evaluate.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from nord_hpc import seeding
from nord_hpc.builder.heads import Head
from nord_hpc.builder.plan import NetworkPlan, plan
from nord_hpc.data_parallel.single import SingleGang
from nord_hpc.datasets.dataset import Dataset, DatasetInfo, make_source, open_dataset
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible, StoreError
from nord_hpc.interfaces import NO_SETTINGS, Control, DataParallel, Gang
from nord_hpc.job import Job, Settings
from nord_hpc.training import checks, metrics
from nord_hpc.training.batches import MIN_SHARD_SAMPLES, plan_batches
from nord_hpc.trial import Examination, Fidelity, Json, Outcome, Trial, TrialState

if TYPE_CHECKING:
    import torch

    from nord_hpc.training.trainer import EpochReport, TrainingData, TrainingResult

logger = logging.getLogger(__name__)

GIB = 1 << 30
BYTES_PER_VALUE = 4
CHECKPOINT_SECONDS = 2.0
"""Predicted seconds of an epoch from which on the state of a training is saved after each."""
EXACT_SHARDS = 8
"""Shards up to which `reduction: auto` is exact on CPUs, and so needs a gradient for each."""


class HeadOptions(Settings):
    """The dense part behind the searched layers; see `nord_hpc.builder.heads.Head`.

    Attributes:
        kind: `none` where the descriptor's last layer gives the outputs itself.
        layers: widths of the hidden dense layers.
        activation: kind of layer after each hidden dense layer.
        batch_norm: whether batch normalization stands between the two.
        dropout: probability, before each dense layer.
        features: `pooled` averages maps to one value a channel, `flattened` takes all values; `auto` flattens maps of
            up to 64 positions. `positions` gives outputs at each position, as language modelling always has.
        tied: whether the last dense layer has the weight of the network's embedding; for language modelling.
    """

    kind: Literal["dense", "none"] = "dense"
    layers: tuple[int, ...] = ()
    activation: str = "ReLU"
    batch_norm: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    features: Literal["auto", "pooled", "flattened", "positions"] = "auto"
    tied: bool = False


class TrainingEvaluator:
    """Trains each candidate from scratch; its fitness is the job's objective on the validation part at the end.

    Args:
        job: everything about data, training and resources.
        folder: that paths and plug-in files of the job are relative to.
        weights_folder: where trained weights are kept, as trial-NUMBER.safetensors.

    Raises:
        BadInput: settings that no training can follow.
    """

    class Options(Settings):
        """How descriptors become networks, and what is noted of their training.

        Attributes:
            head: behind the descriptor's last layer.
            size_policy: to which size maps are scaled where they meet.
            digests: whether the learning curve carries the digest of the weights after every epoch.
            latency: whether latency_ms is measured: the trained network's time for one sample, on the device of the
                gang's first rank. It is not repeatable, nor is a search whose strategy looks at it.
        """

        head: HeadOptions = HeadOptions()
        size_policy: Literal["smallest", "largest"] | int | tuple[int, ...] = "smallest"
        digests: bool = False
        latency: bool = False

    def __init__(self, options: Options, *, job: Job, folder: Path, weights_folder: Path) -> None:
        checks.check_job(job)
        make_source(job.dataset, folder=folder)  # refuses wrong options and paths now, without reading the data
        self._options = options
        self._job = job
        self._folder = folder
        self._weights_folder = weights_folder
        self._head = Head(**options.head.model_dump(exclude={"tied"}))
        self._opened: dict[str, Dataset] = {}
        self._data: TrainingData | None = None

    @property
    def dataset(self) -> Dataset:
        """The job's data, opened now if they are not yet.

        Raises:
            BadInput: they cannot be read, or do not fit the job.
        """
        if not self._opened:
            self._open("cpu")
        return next(iter(self._opened.values()))

    def describe(self) -> str:
        info = self.dataset.info
        return (
            f"{info.name}: {info.n_train} training, {info.n_validation} validation and {info.n_test} test "
            f"{'windows of ' + str(info.input_shape[1]) + ' tokens' if _is_sequence(info) else 'samples'}; "
            f"storage {info.storage}: {info.storage_reason}"
        )

    def data(self) -> dict[str, Json]:
        """See `nord_hpc.interfaces.HasData`."""
        return self.dataset.info.to_json()

    def examine(
        self, descriptor: NeuralDescriptor, fidelity: Fidelity, settings: Mapping[str, Json] = NO_SETTINGS
    ) -> Examination:
        job, info = self._job.with_settings(settings) if settings else self._job, self.dataset.info
        network_plan = self._plan(descriptor)
        batches = plan_batches(
            n_train=info.n_train,
            fraction=fidelity.fraction,
            batch_size=job.training.batch_size,
            shards=job.resources.shards,
        )
        memory_bytes = self._memory_bytes(network_plan, job)
        if memory_bytes > job.limits.memory_gib * GIB:
            raise Infeasible(
                f"the network needs about {memory_bytes / GIB:.2f} GiB to train, more than limits.memory_gib "
                f"{job.limits.memory_gib:g}"
            )
        samples = 3 * batches.samples_used * fidelity.epochs + info.n_validation * max(1, fidelity.epochs)
        part_steps = batches.steps * fidelity.epochs * job.resources.shards
        cost = part_steps * (job.cost.step_microseconds + network_plan.n_layers * job.cost.layer_microseconds)
        cost += network_plan.multiply_adds * samples / job.cost.multiply_adds_per_microsecond
        return Examination(
            cost=max(1, round(cost)),
            n_parameters=network_plan.n_parameters,
            multiply_adds=network_plan.multiply_adds,
            memory_bytes=memory_bytes,
        )

    def evaluate(self, trial: Trial, *, gang: Gang, control: Control, keep_above: float | None) -> Outcome:
        began = time.perf_counter()
        # Everything that can fail happens within the connection: leaving it releases the partners.
        with gang.connect() as data_parallel:
            network, result, how = self._train(trial, data_parallel=data_parallel, control=control)
            fitness = result.metrics[self._job.objective.metric]
            score = fitness if self._job.objective.direction == "maximize" else -fitness
            if gang.rank == 0:
                if keep_above is None or score >= keep_above:
                    self._save(network, trial)
                self._drop_states(trial)
        measured: dict[str, Json] = {}
        if self._options.latency and gang.rank == 0:
            measured["latency_ms"] = self._latency_ms(network)
            how["not_repeatable"] = ["latency_ms"]
        return Outcome(
            TrialState.COMPLETED,
            fitness=fitness,
            metrics={
                **result.metrics,
                **measured,
                "train_loss": result.curve[-1].train_loss,
                "curve": [_curve_point(report) for report in result.curve],
                "steps": result.steps,
                "samples_used": result.batches.samples_used,
                "n_parameters": result.n_parameters,
            },
            seconds=time.perf_counter() - began,
            provenance=how,
        )

    def test(self, trial: Trial, *, control: Control) -> dict[str, Json]:
        """See `Evaluator.test`. Weights that are missing or damaged are trained again, with the trial's seed."""
        from nord_hpc.training.data import scored_part
        from nord_hpc.training.device import resolve_precision
        from nord_hpc.training.scoring import score
        from nord_hpc.training.trainer import autocast_of

        device = self._prepare()
        try:
            network = self.trained_network(trial)
            retrained = False
        except StoreError as error:
            logger.warning("trial %d is trained again for its test: %s", trial.number, error)
            network, _, _ = self._train(trial, data_parallel=SingleGang(), control=control)
            self._save(network, trial)
            retrained = True
        dataset = self._open(device.type)
        part = scored_part(dataset.test, dataset.info, device=device)
        values = score(
            network,
            part,
            metrics=self._metrics(),
            batch_size=self._job.training.validation_batch_size,
            autocast=autocast_of(device, resolve_precision(self._job.training.precision, device)),
            data_parallel=SingleGang(),
            control=control,
            when="on the test part",
        )
        return {**values, "n_samples": dataset.info.n_test, "retrained": retrained}

    def untrained_network(self, trial: Trial) -> torch.nn.Module:
        """The network of a trial with its initial weights, on this rank's device."""
        return self._network(trial, self._prepare())

    def trained_network(self, trial: Trial) -> torch.nn.Module:
        """The network of a trial with its kept weights, on this rank's device.

        Raises:
            StoreError: they are missing or damaged.
        """
        from nord_hpc.training import weights

        network = self._network(trial, self._prepare())
        weights.load(network, self._weights_path(trial), metadata=_metadata(trial))
        return network

    def some_samples(self, part: Literal["train", "test"], n: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Up to `n` different samples of the training or test part, on this rank's device; drawn by `seed`."""
        import numpy as np
        import torch

        from nord_hpc.training.data import Part

        device = self._prepare()
        dataset = self._open(device.type)
        whole = self._training_data(device).train
        if part == "test":
            whole = Part(dataset.test, dataset.info, device=device)
        drawn_N = np.random.Generator(np.random.PCG64(seed)).permutation(len(whole))[:n]
        return whole.take(torch.from_numpy(drawn_N).to(whole.index_device))

    def _train(
        self, trial: Trial, *, data_parallel: DataParallel, control: Control
    ) -> tuple[torch.nn.Module, TrainingResult, dict[str, Json]]:
        """The trained network of a trial, how its training went, and what it ran on."""
        from nord_hpc.training.device import resolve_precision, resolve_reduction
        from nord_hpc.training.trainer import Given, short_memory_is_a_failure, train

        job = self._job.with_settings(trial.settings) if trial.settings else self._job
        device = self._prepare()
        reduction = resolve_reduction(
            job.resources.reduction,
            device=device,
            shards=trial.shards,
            sync_batch_norm=job.training.sync_batch_norm,
        )
        precision = resolve_precision(job.training.precision, device)
        with short_memory_is_a_failure():
            network = self._network(trial, device)
        result = train(
            network,
            self._training_data(device),
            settings=job.training,
            fidelity=trial.fidelity,
            shards=trial.shards,
            seed=trial.seed,
            reduction=reduction,
            precision=precision,
            data_parallel=data_parallel,
            control=control,
            given=Given(metrics=self._metrics()),
            digests=self._options.digests,
            checkpoint=self._checkpoint(trial, leads=data_parallel.rank == 0),
        )
        how: dict[str, Json] = {
            "backend": data_parallel.name,
            "gang": data_parallel.size,
            "reduction": reduction,
            "threads": job.resources.threads,
            "device": device.type,
            "precision": precision,
        }
        return network, result, how

    def _prepare(self) -> torch.device:
        from nord_hpc.training.device import choose_device, prepare_process

        device = choose_device(self._job.resources.device, environ=os.environ)
        prepare_process(device, threads=self._job.resources.threads)
        return device

    def _network(self, trial: Trial, device: torch.device) -> torch.nn.Module:
        """The untrained network of a trial, on its device."""
        import torch

        from nord_hpc.builder.network import build

        network_plan = self._plan(NeuralDescriptor.from_json(trial.descriptor))
        network = build(network_plan, seed=seeding.derived_seed(trial.seed, "weights"), folder=self._folder)
        if device.type == "cuda":
            return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
        return network

    def _plan(self, descriptor: NeuralDescriptor) -> NetworkPlan:
        info = self.dataset.info
        head = self._head
        if _is_sequence(info):
            head = dataclasses.replace(head, features="positions", tied=self._options.head.tied)
        made = plan(
            descriptor,
            input_shape=info.input_shape,
            n_outputs=info.n_outputs,
            head=head,
            size_policy=self._options.size_policy,
            folder=self._folder,
        )
        if _is_sequence(info) and made.steps[0].kind != "Embedding":
            first = made.steps[0]
            raise Infeasible(
                f"layer {first.layer!r} ({first.kind}) gets tokens: a network for text begins with an Embedding",
                layer=first.layer,
            )
        return made

    def _memory_bytes(self, network_plan: NetworkPlan, job: Job) -> int:
        """Estimated peak of one rank; a function of the job alone, not of the ranks or the device at hand."""
        resources = job.resources
        exact = resources.reduction == "exact" or (
            resources.reduction == "auto" and resources.shards <= EXACT_SHARDS and not job.training.sync_batch_norm
        )
        parts = resources.shards if exact else resources.largest_gang
        training = network_plan.memory_bytes(job.training.batch_size // parts)
        if exact and resources.shards > 1:
            training += resources.shards * network_plan.n_parameters * BYTES_PER_VALUE
        # Scoring keeps no results for a backward pass, but has more samples at once.
        largest = max(math.prod(step.input_shape) + math.prod(step.output_shape) for step in network_plan.steps)
        info, at_once = self.dataset.info, job.training.validation_batch_size
        if _is_sequence(info):
            at_once = min(at_once, info.evaluation_streams)
        scoring = network_plan.memory_bytes(0) + largest * at_once * BYTES_PER_VALUE
        return max(training, scoring)

    def _open(self, device_type: str) -> Dataset:
        """The data set for training on a kind of device; opened once."""
        dataset = self._opened.get(device_type)
        if dataset is None:
            dataset = open_dataset(self._job.dataset, folder=self._folder, device=device_type)
            metrics.check_name(self._job.objective.metric, task=dataset.info.task)
            if self._options.head.tied and not _is_sequence(dataset.info):
                raise BadInput("evaluator.head.tied: there is no embedding but for text; set it to false")
            n_train, shards = dataset.info.n_train, self._job.resources.shards
            if n_train < MIN_SHARD_SAMPLES * shards:
                raise BadInput(
                    f"dataset: {n_train} training samples do not give each of {shards} shards {MIN_SHARD_SAMPLES} "
                    f"samples; set resources.shards to at most {max(1, n_train // MIN_SHARD_SAMPLES)}, or use more data"
                )
            self._opened[device_type] = dataset
        return dataset

    def _training_data(self, device: torch.device) -> TrainingData:
        from nord_hpc.training.data import Part, scored_part
        from nord_hpc.training.trainer import TrainingData

        if self._data is None:
            dataset = self._open(device.type)
            logger.info("data storage %s: %s", dataset.info.storage, dataset.info.storage_reason)
            self._data = TrainingData(
                dataset.info,
                train=Part(dataset.train, dataset.info, device=device),
                validation=scored_part(dataset.validation, dataset.info, device=device),
            )
        return self._data

    def _checkpoint(self, trial: Trial, *, leads: bool) -> Path | None:
        """The file that keeps the state of this training between epochs; None where starting anew costs little.

        A trial that continues another begins with that one's state. Where it is missing, it is trained from its
        beginning with the same seed, which gives the same.
        """
        seconds_an_epoch = trial.cost / 1e6 / max(1, trial.fidelity.epochs)
        if not (trial.keeps_state or trial.continues is not None or seconds_an_epoch >= CHECKPOINT_SECONDS):
            return None
        from nord_hpc.training.weights import write_whole

        path = self._state_path(trial.number)
        if leads and trial.continues is not None and not path.exists():
            base = self._state_path(trial.continues)
            if base.exists():
                write_whole(path, base.read_bytes())
        return path

    def _drop_states(self, trial: Trial) -> None:
        """A state that nobody can go on from any more is removed."""
        if not trial.keeps_state:
            self._state_path(trial.number).unlink(missing_ok=True)
        if trial.continues is not None:
            self._state_path(trial.continues).unlink(missing_ok=True)

    def _state_path(self, number: int) -> Path:
        return self._weights_folder / f"state-{number}.safetensors"

    def _latency_ms(self, network: torch.nn.Module) -> float:
        import torch

        from nord_hpc.training.device import resolve_precision
        from nord_hpc.training.latency import latency_ms
        from nord_hpc.training.trainer import autocast_of

        device = self._prepare()
        train = self._training_data(device).train
        x_BC, _ = train.take(torch.zeros(1, dtype=torch.int64, device=train.index_device))
        precision = resolve_precision(self._job.training.precision, device)
        return latency_ms(network, x_BC, autocast=autocast_of(device, precision))

    def _metrics(self) -> list[Any]:
        """What is measured: all metrics of the data's task, the objective in any case."""
        info = self.dataset.info
        return metrics.metrics_of(info.task, n_outputs=info.n_outputs, objective=self._job.objective.metric)

    def _weights_path(self, trial: Trial) -> Path:
        return self._weights_folder / f"trial-{trial.number}.safetensors"

    def _save(self, network: torch.nn.Module, trial: Trial) -> None:
        from nord_hpc.training import weights

        weights.save(network, self._weights_path(trial), metadata=_metadata(trial))


def _is_sequence(info: DatasetInfo) -> bool:
    return info.task == "language_modelling"


def _metadata(trial: Trial) -> dict[str, str]:
    return {"descriptor_hash": trial.descriptor_hash, "trial": str(trial.number), "seed": str(trial.seed)}


def _curve_point(report: EpochReport) -> dict[str, Json]:
    point: dict[str, Json] = {"epoch": report.epoch, "train_loss": report.train_loss, **report.metrics}
    if report.weights_sha256 is not None:
        point["weights_sha256"] = report.weights_sha256
    return point
