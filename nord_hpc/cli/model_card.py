"""The card of an exported network: what it is, how it is used, what it was trained on, how good it is, and its origin.

How the file is made and checked is left to `export`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from nord_hpc import __version__
from nord_hpc.builder.plan import NetworkPlan
from nord_hpc.datasets.dataset import DatasetInfo
from nord_hpc.job import Job
from nord_hpc.trial import Json, Trial

SHOWN_CLASSES = 20


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a network comes from.

    Attributes:
        folder: the run folder, or that of its retraining.
        chosen: in words, how it was chosen.
        reported: metrics in that folder, "validation" and, where it was scored, "test".
        machine: numeric environment that it was trained in.
        provenance: of its evaluation: backend, gang, reduction, device, precision.
        commit: of the source that trained it.
        history_sha256: digest of the search's history; None for a retraining.
    """

    folder: str
    chosen: str
    reported: dict[str, dict[str, Json]]
    machine: dict[str, Json]
    provenance: dict[str, Json]
    commit: str | None
    history_sha256: str | None


@dataclass(frozen=True, slots=True)
class Made:
    """The file.

    Attributes:
        inputs, outputs: names.
        tokens: whether it takes indices of tokens.
        states: shape of each state, without the samples.
        scored: metrics computed from the file itself, by part of the data; empty for safetensors.
        difference: largest difference of its outputs from the network's, as a share of 1e-5 (absolute and relative).
        versions: of the packages that wrote it.
    """

    name: str
    kind: str
    sha256: str
    n_bytes: int
    inputs: list[str]
    outputs: list[str]
    tokens: bool
    states: tuple[tuple[int, ...], ...]
    scored: dict[str, dict[str, float]]
    difference: float | None
    versions: dict[str, str]


def about(trial: Trial, plan: NetworkPlan, info: DatasetInfo, origin: Origin) -> dict[str, Json]:
    """What is kept inside the file: enough to build the network again, and to know its inputs and outputs."""
    return {
        "nord_hpc": __version__,
        "trial": trial.number,
        "seed": trial.seed,
        "descriptor_hash": trial.descriptor_hash,
        "descriptor": trial.descriptor,
        "layers": [asdict(step) | {"inputs": [way._asdict() for way in step.inputs]} for step in plan.steps],
        "input_shape": list(plan.input_shape),
        "mean": list(info.mean),
        "std": list(info.std),
        "class_names": list(info.class_names),
        "data": {"name": info.name, "source": info.source, "licence": info.licence, "fingerprint": info.fingerprint},
        "reported": origin.reported,
    }


def card(job: Job, trial: Trial, plan: NetworkPlan, info: DatasetInfo, origin: Origin, made: Made) -> str:
    """The whole card, as Markdown."""
    blocks = [
        f"# {made.name}",
        f"A network for {info.task.replace('_', ' ')} on {info.name}, found by neural architecture search with "
        f"nord_hpc {__version__}: {plan.n_parameters:,} parameters, {plan.multiply_adds:,} multiply-adds a sample.",
        "## Use",
        _use(info, made),
        *_interface(plan, info, made),
        "## Metrics",
        *_metrics(job, trial, info, origin, made),
        "## Data",
        _data(job, info),
        "## Training",
        _training(job, trial, origin),
        "## Network",
        _layers(plan),
        "## Origin",
        _origin(trial, origin, made),
        "The job:",
        f"```yaml\n{job.to_yaml()}```",
    ]
    return "\n\n".join(blocks) + "\n"


def _use(info: DatasetInfo, made: Made) -> str:
    call = ", ".join(made.inputs)
    if made.kind == "torch":
        lines = [
            "import torch",
            "",
            f'network = torch.export.load("{made.name}").module()',
            f"{', '.join(made.outputs)}{',' if len(made.outputs) == 1 else ''} = network({call})",
        ]
    elif made.kind == "onnx":
        feeds = ", ".join(f'"{name}": {name}' for name in made.inputs)
        lines = [
            "import onnxruntime",
            "",
            f'session = onnxruntime.InferenceSession("{made.name}", providers=["CPUExecutionProvider"])',
            f"{', '.join(made.outputs)}{',' if len(made.outputs) == 1 else ''} = session.run(None, {{{feeds}}})",
        ]
    else:
        lines = [
            "import json",
            "",
            "from safetensors import safe_open",
            "",
            f'with safe_open("{made.name}", framework="pt") as file:',
            "    tensors = {name: file.get_tensor(name) for name in file.keys()}",
            '    about = json.loads(file.metadata()["nord_hpc"])  # the layers, their parameters and connections',
        ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _interface(plan: NetworkPlan, info: DatasetInfo, made: Made) -> list[str]:
    if made.tokens:
        window = plan.input_shape[1:]
        lines = [
            f"- `x`: int64 [N, {window[0]}], indices of tokens among {info.n_outputs}; N is free",
            f"- `outputs`: float32 [N, {info.n_outputs}, {window[0]}], logits of the next token at each position",
        ]
    else:
        shape = ", ".join(map(str, plan.input_shape))
        lines = [
            f"- `x`: float32 [N, {shape}], the numbers of the data's source, **not normalized**; N is free",
            f"- `outputs`: float32 [N, {', '.join(map(str, plan.output_shape))}]{_meaning(info)}",
        ]
    for index, state in enumerate(made.states):
        text = f"float32 [N, {', '.join(map(str, state))}]"
        lines.append(f"- `state{index}`, `new_state{index}`: {text}; zeros at the beginning of a text")
    if made.kind == "safetensors":
        place = "channel_mean and channel_std" if info.mean else "nothing"
        rule = f"This file holds tensors alone: subtract and divide by {place} of it, then run the layers below."
    elif info.mean:
        rule = "The file normalizes its input itself: each channel minus its mean, divided by its standard deviation."
    else:
        rule = "Nothing is normalized: the input are tokens."
    if info.mean:
        rule += f" Mean {_numbers(info.mean)}, standard deviation {_numbers(info.std)}."
    blocks = ["\n".join(lines), rule]
    if info.class_names:
        shown = ", ".join(f"{index} {name!r}" for index, name in enumerate(info.class_names[:SHOWN_CLASSES]))
        more = ", ..." if len(info.class_names) > SHOWN_CLASSES else ""
        blocks.append(f"{'Tokens' if made.tokens else 'Classes'}: {shown}{more}")
    return blocks


def _meaning(info: DatasetInfo) -> str:
    return ", logits of the classes" if info.task == "classification" else ", the predicted numbers"


def _metrics(job: Job, trial: Trial, info: DatasetInfo, origin: Origin, made: Made) -> list[str]:
    names = sorted({name for of in origin.reported.values() for name, value in of.items() if _is_metric(name, value)})
    columns = [("validation", "report"), ("validation", "file"), ("test", "report"), ("test", "file")]
    head = "| metric | " + " | ".join(f"{part}, {where}" for part, where in columns) + " |"
    rows = [head, "| --- |" + " ---: |" * len(columns)]
    for name in names:
        row = []
        for part, where in columns:
            value = (origin.reported if where == "report" else made.scored).get(part, {}).get(name)
            row.append("" if value is None else repr(value))
        rows.append(f"| {name} | " + " | ".join(row) + " |")
    text = (
        f"The search looked at {job.objective.metric} on the validation part alone ({job.objective.direction} it). "
        f"Chosen: {origin.chosen}. The validation figure of the best of many is partly luck: `nord-hpc confirm` trains "
        f"it again with other seeds."
    )
    if made.kind == "safetensors":
        text += " This format cannot be run by itself, so the columns of the file are empty."
    elif made.difference is not None:
        text += (
            f" Outputs of the file are within {made.difference * 1e-5:.1e} of the network's (absolute plus relative)."
        )
    return ["\n".join(rows), text]


def _is_metric(name: str, value: Json) -> bool:
    return isinstance(value, float) and name != "train_loss"


def _data(job: Job, info: DatasetInfo) -> str:
    data = job.dataset
    lines = [
        f"- {info.name}: {info.source}",
        f"- licence: {info.licence}",
        f"- parts: {info.n_train:,} samples for training, {info.n_validation:,} for validation, {info.n_test:,} for "
        f"test; share of the training part in use {data.fraction:g}; validation {data.validation:g} carved out where "
        f"the source has none, split seed {data.split_seed}",
        f"- fingerprint of all samples and targets: {info.fingerprint}",
        *(f"- {note}" for note in info.notes),
    ]
    return "\n".join(lines)


def _training(job: Job, trial: Trial, origin: Origin) -> str:
    training, how = job.training, origin.provenance
    optimizer = ", ".join(f"{key} {json.dumps(value)}" for key, value in training.optimizer.model_dump().items())
    lines = [
        f"- {trial.fidelity.epochs} epochs over {trial.fidelity.fraction:.0%} of the training part in use, batches of "
        f"{training.batch_size}, each in {trial.shards} shards",
        f"- optimizer: {optimizer}; schedule {training.schedule}",
        f"- seed {trial.seed} (of the search: {job.seed})",
        "- trained on: " + ", ".join(f"{key} {value}" for key, value in how.items() if key != "not_repeatable"),
        "- trained with " + ", ".join(f"{key} {value}" for key, value in origin.machine.items()),
    ]
    return "\n".join(lines)


def _layers(plan: NetworkPlan) -> str:
    rows = ["| # | layer | kind | inputs | output | parameters |", "| ---: | --- | --- | --- | --- | ---: |"]
    for index, step in enumerate(plan.steps):
        sources = ", ".join(str(way.source) for way in step.inputs) or "x"
        joined = f"{step.join} of {sources}" if step.join else sources
        chosen = ", ".join(f"{key}={json.dumps(value)}" for key, value in step.parameters.items())
        kind = f"{step.kind}({chosen})"
        output = "x".join(map(str, step.output_shape))
        cells = (index, step.layer, kind.replace("|", "\\|"), joined, output, f"{step.n_parameters:,}")
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def _origin(trial: Trial, origin: Origin, made: Made) -> str:
    lines = [
        f"- trial {trial.number} of {origin.folder}; descriptor {trial.descriptor_hash}",
        *([f"- history {origin.history_sha256}"] if origin.history_sha256 else []),
        f"- nord_hpc {__version__}" + (f", commit {origin.commit}" if origin.commit else ""),
        f"- this file: {made.n_bytes:,} bytes, sha256 {made.sha256}",
        "- written with " + ", ".join(f"{name} {version}" for name, version in made.versions.items()),
    ]
    return "\n".join(lines)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value!r}" for value in values)
