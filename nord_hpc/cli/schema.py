"""The command `nord-hpc schema`: the JSON schema of job files, by which editors complete and check them.

It says what the models of `nord_hpc.job` and the options of all registered classes say. What lies between fields, such
as a gang that divides the shards, is left to `nord-hpc validate`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nord_hpc import __version__, registry
from nord_hpc.errors import BadInput
from nord_hpc.job import Job
from nord_hpc.training import metrics, optimizers

DIALECT = "https://json-schema.org/draft/2020-12/schema"
KINDS = ("dataset", "space", "strategy", "evaluator")
STUDIES = ("compare", "proxies")
SPACES = ("space", "architecture")
"""Options that are spaces themselves."""
PLUGIN = r"^.+\.py:[A-Za-z_][A-Za-z0-9_.]*$"
Schema = dict[str, Any]


def schema() -> None:
    """Print the JSON schema of job files, with the options of every class. Editors complete and check by it."""
    print(json.dumps(job_schema(), indent=2))


def job_schema() -> Schema:
    """The schema of a whole job file, or of a study, which has a section more, named after its command."""
    whole = Job.model_json_schema(mode="validation")
    definitions = whole["$defs"]
    properties = whole["properties"]
    for kind in KINDS:
        properties[kind] = _chosen(kind, _own_fields(definitions, properties[kind]), definitions)
    training = definitions["TrainingSettings"]["properties"]
    training["optimizer"] = _optimizers(_own_fields(definitions, training["optimizer"]))
    definitions["ResourceSettings"]["properties"]["backend"] = _names("backend", also=["auto"])
    known = sorted({name for task in metrics.METRICS for name in (*metrics.METRICS[task], *metrics.OTHERS[task])})
    definitions["ObjectiveSettings"]["properties"]["metric"] |= {"examples": known}
    for command in STUDIES:
        properties[command] = {"type": "object", "description": f"What `nord-hpc {command}` varies."}
    whole |= {"$schema": DIALECT, "title": f"A job file of nord_hpc {__version__}", "description": _first(Job)}
    whole["$defs"] = {name: model for name, model in definitions.items() if f'"#/$defs/{name}"' in json.dumps(whole)}
    return whole


def _own_fields(definitions: Schema, section: Schema) -> Schema:
    """The properties that a section has whatever its name, without the name."""
    reference = section.get("$ref") or section["allOf"][0]["$ref"]
    model = definitions[reference.rpartition("/")[2]]
    return {name: value for name, value in model["properties"].items() if name != "name"}


def _chosen(kind: str, own: Schema, definitions: Schema) -> Schema:
    """A section that chooses a class by its name: one alternative for each class, with that class's options."""
    alternatives = [_alternative(kind, name, own, definitions) for name in registry.names(kind)]
    plugin = {
        "title": "a class of one's own",
        "properties": {"name": {"type": "string", "pattern": PLUGIN, "description": "FILE.py:CLASS"}, **own},
        "required": ["name"],
    }
    by_name = _names(kind) | {"description": f"which {kind}"}
    section: Schema = {"type": "object", "properties": {"name": by_name}, "oneOf": [*alternatives, plugin]}
    default = Job.model_fields[kind].default
    if isinstance(default, BaseModel):  # the section, or its name, may be left away
        name = default.model_dump()["name"]
        section["default"] = {"name": name}
        for alternative in alternatives:
            if alternative["properties"]["name"]["const"] == name:
                alternative["required"] = [field for field in alternative["required"] if field != "name"]
    return section


def _alternative(kind: str, name: str, own: Schema, definitions: Schema) -> Schema:
    """One class: its name, the section's own fields, and its options."""
    named: Schema = {"const": name}
    try:
        cls = registry.resolve(kind, name, folder=Path())
        options = cls.Options.model_json_schema(mode="validation")
    except (BadInput, ImportError, AttributeError):  # of a package that is installed in part, or of another version
        return {"title": name, "properties": {"name": named, **own}, "required": ["name"]}
    prefix = f"{kind}.{name}."
    inner = options.pop("$defs", {})
    definitions |= {prefix + key: _moved(value, inner, prefix) for key, value in inner.items()}
    fields = _moved(options.get("properties", {}), inner, prefix)
    return {
        "title": name,
        "description": _first(cls),
        "properties": {"name": named, **own, **fields},
        "required": ["name", *options.get("required", [])],
        "additionalProperties": options.get("additionalProperties", False),
    }


def _moved(value: Any, inner: Schema, prefix: str) -> Any:
    """The same with references to its own definitions where these now are."""
    if isinstance(value, list):
        return [_moved(item, inner, prefix) for item in value]
    if not isinstance(value, dict):
        return value
    # What tells alternatives apart names definitions in a way of its own, and says no more than they do.
    moved = {key: _moved(item, inner, prefix) for key, item in value.items() if key != "discriminator"}
    if isinstance(value.get("$ref"), str):
        moved["$ref"] = f"#/$defs/{prefix}{value['$ref'].rpartition('/')[2]}"
    named = {"$ref": f"#/$defs/{prefix}Named"}
    return moved | {name: {"$ref": "#/properties/space"} for name in SPACES if moved.get(name) == named}


def _optimizers(own: Schema) -> Schema:
    """One alternative for each optimizer, with torch's own options of it."""
    alternatives = []
    for name, options in sorted(optimizers.OPTIONS.items()):
        given = {option: {"type": ["number", "boolean", "array"]} for option in options}
        required = [] if name == "adam" else ["name"]
        fields = {"name": {"const": name}, **own, **given}
        alternatives.append({"title": name, "properties": fields, "required": required, "additionalProperties": False})
    names = {"enum": sorted(optimizers.OPTIONS), "default": "adam", "description": "which optimizer"}
    return {"type": "object", "properties": {"name": names}, "oneOf": alternatives}


def _names(kind: str, *, also: list[str] = []) -> Schema:  # noqa: B006
    return {"anyOf": [{"enum": [*also, *registry.names(kind)]}, {"type": "string", "pattern": PLUGIN}]}


def _first(cls: Any) -> str:
    """The first sentence or line of a class's docstring."""
    return (cls.__doc__ or "").strip().split("\n")[0]
