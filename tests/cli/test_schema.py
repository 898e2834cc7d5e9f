"""The JSON schema of job files: all jobs here are valid by it, it knows every option, and refuses what jobs refuse."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from nord_hpc import registry
from nord_hpc.cli import schema
from nord_hpc.cli.app import app
from nord_hpc.job import Job

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
GOOD: dict[str, Any] = {
    "name": "good",
    "dataset": {"name": "digits", "fraction": 0.5},
    "space": {"name": "conv_graph", "max_layers": 3},
    "strategy": {"name": "regularized_evolution", "population": 3, "sample": 2},
    "evaluator": {"name": "training", "head": {"layers": [8]}},
    "training": {"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
    "budget": {"trials": 5},
    "resources": {"backend": "torch_ddp"},
}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    made = schema.job_schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


@pytest.mark.parametrize("file", JOBS, ids=lambda file: file.stem)
def test_the_jobs_that_come_along_are_valid(validator: jsonschema.Draft202012Validator, file: Path) -> None:
    validator.validate(yaml.safe_load(file.read_text(encoding="utf-8")))


def changed(place: str, value: Any) -> dict[str, Any]:
    job = copy.deepcopy(GOOD)
    section: Any = job
    *path, last = place.split(".")
    for part in path:
        section = section.setdefault(part, {})
    section[last] = value
    return job


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("nam", "x"),
        ("name", "a/b"),
        ("seed", -1),
        ("training.epoch", 3),
        ("training.epochs", "many"),
        ("training.batch_size", 0),
        ("training.schedule", "cosin"),
        ("training.optimizer", {"name": "adamm"}),
        ("training.optimizer", {"name": "adam", "momentum": 0.9}),
        ("training.optimizer.lr", 0),
        ("dataset.name", "digit"),
        ("dataset.fraction", 2),
        ("dataset.colour", True),
        ("dataset", {"name": "text", "bptt": "long"}),
        ("space", {"name": "conv_graph", "max_layer": 3}),
        ("space", {"max_layers": 3}),
        ("space", {"name": "recurrent_cell", "base": 3}),
        ("strategy.name", "regularised_evolution"),
        ("strategy.population", 0),
        ("strategy", "random_search"),
        ("evaluator.head.layer", [8]),
        ("evaluator.head.kind", "sparse"),
        ("resources.backend", "horovd"),
        ("resources.shards", 0),
        ("order.mode", "random"),
        ("budget.trials", 0),
        ("objective.direction", "up"),
    ],
)
def test_wrong_jobs_are_refused(validator: jsonschema.Draft202012Validator, place: str, value: Any) -> None:
    assert validator.is_valid(GOOD)
    assert not validator.is_valid(changed(place, value))


@pytest.mark.parametrize("missing", ["name", "space", "strategy", "budget"])
def test_what_a_job_must_have(validator: jsonschema.Draft202012Validator, missing: str) -> None:
    assert not validator.is_valid({key: value for key, value in GOOD.items() if key != missing})


def test_classes_of_ones_own_and_sections_without_a_name(validator: jsonschema.Draft202012Validator) -> None:
    for place, value in (
        ("space", {"name": "mine.py:Space", "anything": [1]}),
        ("resources.backend", "mine.py:Backend"),
        ("evaluator", {"latency": True}),
        ("dataset", {"fraction": 0.1}),
        ("training.optimizer", {"lr": 0.1}),
        ("space", {"name": "joint", "architecture": {"name": "conv_graph"}, "hyperparameters": {"parameters": {}}}),
    ):
        if place == "space" and value["name"] == "joint":
            value["hyperparameters"]["parameters"] = {"training.batch_size": {"type": "ordinal", "choices": [16, 32]}}
        assert validator.is_valid(changed(place, value)), (place, value)
    inner = changed("space", {"name": "joint", "architecture": {"name": "conv_grap"}, "hyperparameters": {}})
    assert not validator.is_valid(inner)


@pytest.mark.parametrize("kind", schema.KINDS)
def test_every_class_stands_with_all_its_options_and_their_defaults(kind: str) -> None:
    section = schema.job_schema()["properties"][kind]
    by_name = {one["properties"]["name"].get("const"): one for one in section["oneOf"]}
    assert set(by_name) == {*registry.names(kind), None}
    for name in registry.names(kind):
        options: type[BaseModel] = registry.resolve(kind, name, folder=Path()).Options
        fields = by_name[name]["properties"]
        assert {*options.model_fields} <= {*fields}
        for key, field in options.model_fields.items():
            if not field.is_required() and "default" in fields[key]:
                default = field.get_default(call_default_factory=True, validated_data={})
                plain = options.__pydantic_serializer__.to_python(
                    options.model_construct(**{key: default}), mode="json"
                )
                assert fields[key]["default"] == plain[key], (name, key)


def test_no_reference_leads_nowhere_and_no_definition_is_left_over() -> None:
    made = schema.job_schema()
    text = json.dumps(made)
    references = {part.partition('"')[0] for part in text.split('"#/$defs/')[1:]}
    assert references == set(made["$defs"])
    assert set(Job.model_fields) | {*schema.STUDIES} == set(made["properties"])


def test_the_command_prints_it() -> None:
    printed = CliRunner().invoke(app, ["schema"])
    assert printed.exit_code == 0, printed.output
    assert json.loads(printed.output) == schema.job_schema()
