"""Writes docs/job_file.md from the models of the job file and the options of all built-in classes.

To be run after a change of these; a test compares.

python docs/make_job_reference.py           # writes the file
python docs/make_job_reference.py --check   # exit code 1 where the file is not what would be written
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nord_hpc import job, registry
from nord_hpc.training import metrics, optimizers

FILE = Path(__file__).with_name("job_file.md")

INTRODUCTION = """# The job file

A job file is YAML. `nord-hpc validate JOB` prints it with all defaults filled in. Unknown keys are refused.
`--set SECTION.FIELD=VALUE` overrides a field; the value is YAML.

This page is written by `python docs/make_job_reference.py` from the code. Edit the docstrings, not this page.

A section with `name` chooses a class. Its other keys are that class's options; they are listed below by class.
Besides the built-in names, `dataset`, `space`, `strategy` and `evaluator` take `FILE.py:CLASS`, relative to the job
file, and the names that installed packages register as entry points in the group `nord_hpc.SECTION`.
"""

# What the models say in the docstring of the section as a whole, or by the name alone.
MORE = {
    ("Job", "name"): "of the run; letters, digits, `.`, `_` and `-`. The default run folder is `runs/NAME-TIME`.",
    ("Job", "seed"): "of the search; each trial's seed follows from it and the trial's number.",
    ("OptimizerSettings", "name"): "which optimizer.",
    ("OptimizerSettings", "lr"): "learning rate, before `schedule` and `scale_lr`.",
    ("EvaluatorSettings", "name"): "which evaluator.",
    ("DatasetSettings", "name"): "which data set.",
    ("Named", "name"): "which class.",
    ("ObjectiveSettings", "metric"): "what is optimized.",
    ("ObjectiveSettings", "direction"): "whether more or less of it is better.",
    ("BudgetSettings", "trials"): "trials that are evaluated, failed ones included.",
    ("CheckpointSettings", "keep_weights"): "trials whose weights are kept.",
    ("CostSettings", "step_microseconds"): "of a training step, for each shard.",
    ("CostSettings", "layer_microseconds"): "of each layer in a training step, for each shard.",
    ("CostSettings", "multiply_adds_per_microsecond"): "speed at which samples are computed.",
}

UNITS = (
    ("multiply_adds_per_microsecond", "1/µs"),
    ("microseconds", "µs"),
    ("seconds", "s"),
    ("hours", "h"),
    ("gib", "GiB"),
)
BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
KINDS = {"dataset": "Data sets", "space": "Spaces", "strategy": "Strategies", "evaluator": "Evaluators"}


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        return int(not FILE.is_file() or FILE.read_text(encoding="utf-8") != text)
    FILE.write_text(text, encoding="utf-8")
    return 0


def page() -> str:
    """The whole page."""
    blocks = [INTRODUCTION.strip(), "## Top level", *_table(job.Job, sections=False)]
    for name, field in job.Job.model_fields.items():
        model = _model_of(field)
        if model is not None:
            blocks += [f"## {name}", _sentences(model, required=field.is_required()), *_table(model)]
            blocks += _choices(name)
    for kind, title in KINDS.items():
        blocks.append(f"## {title}")
        for name, target in sorted(registry.BUILT_IN[kind].items()):
            cls = registry.resolve(kind, name, folder=Path())
            about = f"{_description(cls)} Class `{target.replace(':', '.')}`."
            blocks += [f"### {kind}: {name}", about, *(_table(cls.Options) or ["It has no options."])]
    return "\n\n".join(blocks) + "\n"


def _table(model: type[BaseModel], *, prefix: str = "", sections: bool = True) -> list[str]:
    """The fields of a model as one block, or none where it has no fields."""
    rows = _rows(model, prefix=prefix, sections=sections)
    if not rows:
        return []
    head = "| field | default | range | unit | meaning |\n| --- | --- | --- | --- | --- |\n"
    return [head + "\n".join("| " + " | ".join(row) + " |" for row in rows)]


def _rows(model: type[BaseModel], *, prefix: str, sections: bool) -> list[tuple[str, ...]]:
    texts = attributes(model)
    rows: list[tuple[str, ...]] = []
    for name, field in model.model_fields.items():
        nested = _model_of(field)
        if nested is not None:
            if sections:
                rows += _rows(nested, prefix=f"{prefix}{name}.", sections=True)
            continue
        more = MORE.get((model.__name__, name))
        assert (name in texts) != (more is not None), f"{model.__qualname__}.{name}: describe it in its docstring"
        meaning = (texts.get(name) or more or "").replace("|", "\\|")
        rows.append((f"`{prefix}{name}`", _default(field), _range(field), _unit(name), meaning))
    return rows


def attributes(model: type[BaseModel]) -> dict[str, str]:
    """Name to text of the attributes that a docstring in Google style describes; "a, b: text" describes both.

    Those of the base class that the class inherits are among them.
    """
    base = model.__bases__[0]
    texts = attributes(base) if issubclass(base, BaseModel) and base is not BaseModel else {}
    _, _, block = inspect.cleandoc(model.__dict__.get("__doc__") or "").partition("Attributes:\n")
    for entry in re.split(r"\n(?=    \S)", block):
        names, separator, text = entry.strip().partition(": ")
        if separator:
            texts |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
    return texts


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _description(cls: type) -> str:
    """The text of a docstring before its first heading such as "Attributes:", as one paragraph."""
    text = re.split(r"\n\w[\w ]*:\n", inspect.cleandoc(cls.__doc__ or ""))[0]
    return " ".join(text.split())


def _sentences(model: type[BaseModel], *, required: bool) -> str:
    return _description(model) + (" The section is required." if required else "")


def _choices(section: str) -> list[str]:
    """What else may stand in a section, from the tables of the code."""
    if section == "training":
        options = [f"`{name}`: {', '.join(f'`{o}`' for o in of)}" for name, of in sorted(optimizers.OPTIONS.items())]
        return ["Options of the optimizers, with torch's meanings and defaults: " + "; ".join(options) + "."]
    if section == "objective":
        names = {task: [*of, *metrics.OTHERS[task]] for task, of in metrics.METRICS.items()}
        known = [f"for {task} {', '.join(f'`{name}`' for name in of)}" for task, of in names.items()]
        return ["Metrics: " + "; ".join(known) + "."]
    if section in registry.BUILT_IN:
        return ["Built-in names: " + ", ".join(f"`{name}`" for name in sorted(registry.BUILT_IN[section])) + "."]
    return []


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return "`" + json.dumps(value, default=list) + "`"


def _range(field: FieldInfo) -> str:
    """What may stand in a field: choices, bounds, or the type."""
    choices, types = _alternatives(field.annotation)
    bounds = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in BOUNDS
        if getattr(limit, name, None) is not None
    ]
    if choices:
        types = [f"`{choice}`" for choice in choices] + types
    may_be_null = "null" in types
    text = " or ".join(name for name in types if name != "null") + (f" {', '.join(bounds)}" if bounds else "")
    return f"{text}, or null" if may_be_null else text


def _alternatives(kind: Any) -> tuple[list[Any], list[str]]:
    """The literal values and the names of types of an annotation."""
    if get_origin(kind) is Literal:
        return list(get_args(kind)), []
    if isinstance(kind, type) and get_origin(kind) is None:
        return [], [{"NoneType": "null", "str": "text"}.get(kind.__name__, kind.__name__)]
    inner = [arg for arg in get_args(kind) if arg is not Ellipsis]
    found = [_alternatives(arg) for arg in inner]
    choices = [choice for some, _ in found for choice in some]
    types = [name for _, some in found for name in some]
    if get_origin(kind) is tuple and Ellipsis not in get_args(kind):
        return [], [f"[{', '.join(arg.__name__ for arg in inner)}]"]
    if get_origin(kind) is tuple:
        pair = " or ".join([*(f"`{choice}`" for choice in choices), *dict.fromkeys(types)])
        return [], [f"list of {pair}"]
    return choices, types


def _unit(name: str) -> str:
    return next((unit for end, unit in UNITS if name.endswith(end)), "")


if __name__ == "__main__":
    sys.exit(main())
