"""The command `nord-hpc export`: a trained network as a file for others, checked by running it, with its card."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console

from nord_hpc import registry
from nord_hpc.builder.plan import NetworkPlan
from nord_hpc.cli import wiring
from nord_hpc.cli.model_card import Made, Origin, about, card
from nord_hpc.cli.retrain import BEST, chosen_entry
from nord_hpc.cluster import parts, worker
from nord_hpc.data_parallel.single import SingleGang
from nord_hpc.datasets.dataset import DatasetInfo, Split, open_dataset
from nord_hpc.errors import BadInput, StoreError
from nord_hpc.job import Job
from nord_hpc.logs import log_to_stderr
from nord_hpc.store.retrain_folder import RetrainFolder
from nord_hpc.store.run_folder import RunFolder, write_atomically
from nord_hpc.training import metrics
from nord_hpc.trial import Json, Trial

if TYPE_CHECKING:
    from nord_hpc.training.export import Exported, Interface

Format = Literal["torch", "onnx", "safetensors"]
PACKAGES: dict[Format, tuple[str, ...]] = {
    "torch": ("torch",),
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "safetensors": ("safetensors",),
}
COMPARED_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Found:
    """A trained network in a folder.

    Attributes:
        weights: folder of its weights.
    """

    job: Job
    trial: Trial
    weights: Path
    origin: Origin


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A search's run folder, or a retraining's.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The new file; its card is FILE.md.")],
    trial: Annotated[str, typer.Option("--trial", metavar="best|N", help="Which network; the best one.")] = BEST,
    kind: Annotated[
        str, typer.Option("--format", metavar="torch|onnx|safetensors", help="A torch.export program, if not given.")
    ] = "torch",
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Log more to standard error.")] = 0,
) -> int:
    """Write a trained network as a file that loads without nord_hpc, run the file, and describe it in FILE.md."""
    log_to_stderr(verbose=verbose)
    if kind not in PACKAGES:
        raise BadInput(f"--format {kind}: is not a choice; set torch, onnx or safetensors")
    form: Format = kind
    if form == "torch" and out.suffix != ".pt2":
        raise BadInput(
            f"--out {out}: torch reads its programs from files that end in .pt2; set {out.with_suffix('.pt2')}"
        )
    if not out.parent.is_dir():
        raise BadInput(f"--out {out}: there is no folder {out.parent}")
    found = find(folder, trial)
    record = write(found, out, form)
    if as_json:
        print(json.dumps(record, indent=2, allow_nan=False))
    else:
        _print(out, record)
    return wiring.DONE


def find(folder: Path, chosen: str) -> Found:
    """A trained network of a run folder or a retraining.

    Raises:
        BadInput: there is none, or its weights were not kept.
    """
    if RetrainFolder.is_one(folder):
        return _of_retraining(RetrainFolder(folder), chosen)
    return _of_search(RunFolder.open(folder), chosen)


def write(found: Found, out: Path, kind: Format) -> dict[str, Json]:
    """Write file and card; returns what there is to say of them.

    Raises:
        BadInput: the network cannot be exported in this format, or the file cannot be written.
        StoreError: the weights are damaged, or the file does not give what the network gives.
    """
    from nord_hpc.training import export as exporting

    exporting.check_packages(kind)
    evaluator = cast("Any", parts.make_evaluator(found.job, found.weights))
    network = evaluator.trained_network(found.trial)
    info: DatasetInfo = evaluator.dataset.info
    plan: NetworkPlan = network.plan
    exported, interface = exporting.prepare(network, info=info)
    try:
        exporting.write(exported, interface, out, kind=kind, about=about(found.trial, plan, info, found.origin))
    except OSError as error:
        raise BadInput(f"--out {out}: cannot be written: {error.strerror}") from error
    try:
        scored, difference = _checked(found, out, kind, exported, interface)
    except StoreError:
        out.unlink()
        raise
    made = Made(
        name=out.name,
        kind=kind,
        sha256=hashlib.sha256(out.read_bytes()).hexdigest(),
        n_bytes=out.stat().st_size,
        inputs=interface.input_names,
        outputs=interface.output_names,
        tokens=interface.tokens,
        states=interface.states,
        scored=scored,
        difference=difference,
        versions={name: version(name) for name in PACKAGES[kind]},
    )
    write_atomically(card_file(out), card(found.job, found.trial, plan, info, found.origin, made).encode())
    return {
        **asdict(made),
        "trial": found.trial.number,
        "card": str(card_file(out)),
        "reported": found.origin.reported,
        "metric": found.job.objective.metric,
        "as_reported": as_reported(found.origin.reported, scored) if scored else None,
    }


def card_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.md")


def as_reported(reported: dict[str, dict[str, Json]], scored: dict[str, dict[str, float]]) -> dict[str, bool]:
    """For each metric of the file, whether it is that of the report, to the last digit."""
    return {
        f"{part} {name}": value == reported[part][name]
        for part, values in scored.items()
        for name, value in values.items()
        if name in reported.get(part, {})
    }


def _of_search(source: RunFolder, chosen: str) -> Found:
    job, history = source.job(), source.history()
    entry = chosen_entry(source, history, job, chosen)
    if entry.trial.reuses is not None:  # its outcome, and so its weights, are those of an equal trial
        entry = history.entries[entry.trial.reuses]
    trial, outcome = entry.trial, entry.outcome
    evaluator = registry.resolve("evaluator", job.evaluator.name, folder=job.folder)
    if not hasattr(evaluator, "trained_network"):
        raise BadInput(
            f"{source.path}: its evaluator {job.evaluator.name} keeps no networks; train one with: nord-hpc retrain "
            f"{source.path} --set evaluator.name=training"
        )
    if outcome is None or outcome.fitness is None:
        raise BadInput(f"--trial {chosen}: it has not completed, so there is no trained network")
    if not source.weights_file(trial.number).is_file():
        kept = sorted(int(file.stem.partition("-")[2]) for file in source.weights.glob("trial-*.safetensors"))
        choice = f"export one of {', '.join(map(str, kept))}, or " if kept else ""
        raise BadInput(
            f"--trial {chosen}: its weights were not kept; {choice}train it with: nord-hpc retrain {source.path} "
            f"--trial {trial.number}"
        )
    best = history.best(maximize=job.objective.direction == "maximize", fidelity=job.full_fidelity)
    n_completed = sum(e.outcome is not None and e.outcome.fitness is not None for e in history.entries.values())
    how = "the best" if best is entry else "by its number"
    reported = {"validation": _numbers(outcome.metrics)}
    if history.test is not None and history.test["number"] == trial.number:
        reported["test"] = _numbers(history.test["metrics"])
    life = history.lives[entry.attempts[-1].life if entry.attempts else -1]
    origin = Origin(
        folder=str(source.path),
        chosen=f"{how} of {n_completed} completed trials",
        reported=reported,
        machine=life.machine,
        provenance=dict(outcome.provenance),
        commit=life.commit,
        history_sha256=history.history_sha256,
    )
    return Found(job.with_settings(trial.settings) if trial.settings else job, trial, source.weights, origin)


def _of_retraining(source: RetrainFolder, chosen: str) -> Found:
    plan, result = source.plan(), source.result()
    if chosen not in (BEST, str(plan.trial.number)):
        raise BadInput(
            f"--trial {chosen}: {source.path} is a retraining of trial {plan.trial.number}; leave --trial away"
        )
    if result is None:
        raise BadInput(f"{source.path}: is not finished; go on with: nord-hpc retrain {source.path}")
    provenance = dict(result["provenance"])
    machine, commit = provenance.pop("machine"), provenance.pop("commit")
    origin = Origin(
        folder=str(source.path),
        chosen=f"trial {plan.trial.number} ({plan.chosen}) of {plan.source}, trained in full",
        reported={"validation": _numbers(result["validation"]), "test": _numbers(result["test"])},
        machine=machine,
        provenance=provenance,
        commit=commit,
        history_sha256=None,
    )
    return Found(source.run.job(), plan.trial, source.run.weights, origin)


def _checked(
    found: Found, out: Path, kind: Format, exported: Exported, interface: Interface
) -> tuple[dict[str, dict[str, float]], float | None]:
    """Metrics of the file, on the parts that have been scored before, and how far its outputs are from the network's.

    Raises:
        StoreError: too far.
    """
    from nord_hpc.training import export as exporting

    if kind == "safetensors":
        return {}, None
    runner = exporting.load(out, kind=kind)
    # As the source gives them: nothing that this program normalized.
    settings = found.job.dataset.model_copy(update={"storage": "mmap"})
    dataset = open_dataset(settings, folder=found.job.folder)
    some = dataset.validation.x[0:COMPARED_SAMPLES]
    difference = exporting.difference(exported, runner, interface, some)
    if not difference <= 1.0:
        raise StoreError(
            f"{out}: gives other outputs than the network, by {difference * exporting.TOLERANCE:.1e}, more than "
            f"{exporting.TOLERANCE:g}; it is removed"
        )
    scored = {}
    for part in found.origin.reported:
        split: Split = getattr(dataset, part)
        scored[part] = exporting.score_file(
            runner,
            interface,
            split,
            info=_without_normalization(dataset.info),
            metrics=metrics.metrics_of(
                dataset.info.task, n_outputs=dataset.info.n_outputs, objective=found.job.objective.metric
            ),
            batch_size=found.job.training.validation_batch_size,
            data_parallel=SingleGang(),
            control=worker.WorkerControl(math.inf, lambda: False),
        )
    return scored, difference


def _without_normalization(info: DatasetInfo) -> DatasetInfo:
    n_channels = len(info.mean)
    return replace(info, mean=(0.0,) * n_channels, std=(1.0,) * n_channels)


def _numbers(values: Any) -> dict[str, Json]:
    """The metrics among what an outcome or a test has."""
    return {name: value for name, value in values.items() if isinstance(value, float)}


def _print(out: Path, record: dict[str, Any]) -> None:
    console = Console()
    lines = [f"{out}: trial {record['trial']} as {record['kind']}, {record['n_bytes']:,} bytes; card {record['card']}"]
    metric = record["metric"]
    for part, values in record["scored"].items():
        value, reported = values[metric], record["reported"][part].get(metric)
        same = "as reported" if value == reported else f"reported: {reported!r}"
        lines.append(f"{part} {metric} of the file {value!r}, {same}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
