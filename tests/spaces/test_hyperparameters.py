"""Hyperparameters as a search space: the suite of all spaces, kinds and conditions, job fields, fixed networks."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conformance.space_suite import SpaceSuite, generator, make_space, text_of
from pydantic import ValidationError

from nord_hpc import job as jobs

LR = {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}
OPTIMIZER = {"type": "categorical", "choices": ["adam", "sgd", "rmsprop"]}
MOMENTUM = {"type": "float", "low": 0.0, "high": 0.99, "when": {"training.optimizer.name": ["sgd", "rmsprop"]}}
BATCH = {"type": "ordinal", "choices": [16, 32, 64, 128]}
MIXED = {
    "training.optimizer.lr": LR,
    "training.optimizer.name": OPTIMIZER,
    "training.optimizer.momentum": MOMENTUM,
    "training.batch_size": BATCH,
    "width": {"type": "int", "low": 1, "high": 1000, "log": True},
}
FINITE = {
    "kind": {"type": "categorical", "choices": ["none", True, 2, 0.5]},
    "depth": {"type": "int", "low": 1, "high": 3, "when": {"kind": [2, 0.5]}},
    "last": {"type": "ordinal", "choices": ["a", "b"], "when": {"depth": 3}},
    "resources.gang": {"type": "ordinal", "choices": [1, 2]},
}


def space_of(parameters: dict[str, Any], **options: Any) -> Any:
    return make_space("hyperparameters", {"parameters": parameters, **options})


class TestHyperparameters(SpaceSuite):
    name = "hyperparameters"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "mixed": {"parameters": MIXED},
        "finite": {"parameters": FINITE},
        "one": {"parameters": {"x": {"type": "float", "low": -1.0, "high": 1.0}}},
    }


def test_points_hold_the_parameters_whose_conditions_hold() -> None:
    space = space_of(FINITE)
    assert space.contains({"kind": "none", "resources.gang": 1})
    assert space.contains({"kind": 0.5, "depth": 3, "last": "b", "resources.gang": 2})
    assert not space.contains({"kind": "none", "depth": 1, "resources.gang": 1})
    assert not space.contains({"kind": 2, "resources.gang": 1})
    assert not space.contains({"kind": 2, "depth": 2, "last": "a", "resources.gang": 1})
    assert not space.contains({"kind": 2, "depth": 3, "last": "a", "resources.gang": 1, "more": 0})


@pytest.mark.parametrize(
    "change",
    [{"kind": 1}, {"kind": 2.0, "depth": 1}, {"resources.gang": True}, {"resources.gang": 1.0}, {"resources.gang": 3}],
)
def test_values_of_another_type_are_not_contained(change: dict[str, Any]) -> None:
    space = space_of(FINITE)
    assert space.contains({"kind": True, "resources.gang": 1})
    assert not space.contains({"kind": True, "resources.gang": 1, **change})


def test_a_finite_space_is_counted_and_listed() -> None:
    space = space_of(FINITE)
    # kind none or True: 1 each; 2 or 0.5: depth 1, 2, and 3 with a or b; all that for two gangs.
    assert space.size() == (2 + 2 * 4) * 2 == 20
    assert space.decisions() == (4, 3, 2, 2)
    choices = [(a, b, c, d) for a in range(4) for b in range(3) for c in range(2) for d in range(2)]
    points = {text_of(space.from_decisions(choice)) for choice in choices}
    assert len(points) == 20
    assert all(space.contains(json.loads(text)) for text in points)
    reached, waiting = set(), [text_of(space.sample(generator(0)))]
    while waiting:
        text = waiting.pop()
        if text not in reached:
            reached.add(text)
            waiting += [text_of(near) for near in space.neighbours(json.loads(text))]
    assert reached == points


def test_a_space_with_floats_does_not_claim_to_be_listed() -> None:
    space = space_of(MIXED)
    assert space.size() is None
    assert not any(hasattr(space, name) for name in ("neighbours", "decisions", "from_decisions"))


def test_large_whole_numbers_are_counted_without_listing_them() -> None:
    whole = {"type": "int", "low": 1, "high": 10**9}
    parameters = {"n": whole, "m": {**whole, "when": {"n": [1, 2]}}, "k": {**whole, "when": {"m": 7}}}
    billion = 10**9
    assert space_of(parameters).size() == (billion - 2) + 2 * (billion - 1 + billion)


def test_logarithms_are_uniform() -> None:
    space = space_of({"x": {"type": "float", "low": 1e-4, "high": 1.0, "log": True}})
    rng = generator(0)
    decades = Counter(math.floor(math.log10(space.sample(rng)["x"])) for _ in range(4000))
    assert set(decades) == {-4, -3, -2, -1}
    assert all(abs(count - 1000) < 4 * math.sqrt(4000 * 0.25 * 0.75) for count in decades.values())


def test_whole_numbers_are_uniform_at_both_ends_too() -> None:
    space = space_of({"n": {"type": "int", "low": -1, "high": 2}})
    rng = generator(1)
    counts = Counter(space.sample(rng)["n"] for _ in range(4000))
    assert set(counts) == {-1, 0, 1, 2}
    assert all(abs(count - 1000) < 4 * math.sqrt(4000 * 0.25 * 0.75) for count in counts.values())


def test_mutations_are_small_steps_of_one_parameter() -> None:
    space = space_of({"x": {"type": "float", "low": 0.0, "high": 10.0}, "n": {"type": "int", "low": 0, "high": 100}})
    rng = generator(2)
    parent = {"x": 5.0, "n": 50}
    children = [space.mutate(parent, rng) for _ in range(4000)]
    assert all((child["x"] != 5.0) + (child["n"] != 50) == 1 for child in children)
    moved = [child["x"] for child in children if child["x"] != 5.0]
    assert abs(len(moved) - 2000) < 4 * math.sqrt(1000)
    # Standard deviation 2, thrown back at 0 and 10, which two and a half deviations away hardly matters.
    assert math.sqrt(sum((x - 5) ** 2 for x in moved) / len(moved)) == pytest.approx(2.0, rel=0.1)


def test_what_comes_into_existence_is_drawn_and_what_ends_is_gone() -> None:
    space = space_of({k: MIXED[k] for k in ("training.optimizer.name", "training.optimizer.momentum")})
    rng = generator(3)
    born = [space.mutate({"training.optimizer.name": "adam"}, rng) for _ in range(50)]
    assert {child["training.optimizer.name"] for child in born} == {"sgd", "rmsprop"}
    assert len({child["training.optimizer.momentum"] for child in born}) == 50
    parent = {"training.optimizer.name": "sgd", "training.optimizer.momentum": 0.5}
    children = [space.mutate(parent, rng) for _ in range(100)]
    assert {"training.optimizer.name": "adam"} in children
    kept = [child for child in children if child["training.optimizer.name"] == "rmsprop"]
    assert kept and all(child["training.optimizer.momentum"] == 0.5 for child in kept)


def test_crossover_takes_values_of_both_parents() -> None:
    space = space_of(MIXED)
    rng = generator(4)
    first, second = space.sample(rng), space.sample(rng)
    for _ in range(50):
        child = space.crossover(first, second, rng)
        for name, value in child.items():
            given = [parent[name] for parent in (first, second) if name in parent]
            assert value in given or not given


def test_encodings_have_one_length_and_tell_what_is_absent() -> None:
    space = space_of(FINITE)
    assert space.encode({"kind": True, "resources.gang": 2}) == [0.0, 1.0, 0.0, 0.0, -1.0, -1.0, 1.0]
    assert space.encode({"kind": 2, "depth": 3, "last": "a", "resources.gang": 1}) == [0, 0, 1, 0, 1, 0, 0]
    mixed = space_of(MIXED)
    point = {
        "training.optimizer.lr": 1e-4,
        "training.optimizer.name": "adam",
        "training.batch_size": 128,
        "width": 1000,
    }
    # Alphabetical, but each after what it depends on: batch_size, lr, name (3), momentum, width.
    assert mixed.encode(point) == [1.0, 0.0, 1.0, 0.0, 0.0, -1.0, 1.0]


def test_settings_are_fields_that_a_job_takes() -> None:
    space = space_of({**MIXED, "resources.gang": {"type": "ordinal", "choices": [1, 2, 4]}})
    job = jobs.from_mapping(
        {
            "name": "settings",
            "space": {"name": "conv_graph"},
            "strategy": {"name": "random_search"},
            "budget": {"trials": 1},
        },
        folder=Path(),
    )
    rng = generator(5)
    for _ in range(20):
        point = space.sample(rng)
        settings = space.settings(point)
        assert settings == {**point, "resources.shards": point["resources.gang"]}
        own = job.with_settings(settings)
        assert own.training.batch_size == point["training.batch_size"]
        assert own.training.optimizer.model_dump() == {
            name.removeprefix("training.optimizer."): value for name, value in point.items() if "optimizer" in name
        }
        assert own.resources.gang == own.resources.shards == point["resources.gang"]


def test_shards_follow_the_gang_unless_they_are_set() -> None:
    gang = {"type": "ordinal", "choices": [1, 2, 4]}
    assert space_of({"resources.gang": gang}).settings({"resources.gang": 2}) == {
        "resources.gang": 2,
        "resources.shards": 2,
    }
    both = space_of({"resources.gang": gang, "resources.shards": {"type": "categorical", "choices": [4]}})
    assert both.settings({"resources.gang": 2, "resources.shards": 4})["resources.shards"] == 4


def test_linear_scaling_grows_batch_and_learning_rate_with_the_gang() -> None:
    parameters = {
        "resources.gang": {"type": "ordinal", "choices": [1, 2, 4]},
        "training.batch_size": BATCH,
        "training.optimizer.lr": LR,
    }
    space = space_of(parameters, linear_scaling=True)
    assert space.settings({"resources.gang": 4, "training.batch_size": 32, "training.optimizer.lr": 0.01}) == {
        "resources.gang": 4,
        "resources.shards": 4,
        "training.batch_size": 128,
        "training.optimizer.lr": 0.01,
        "training.scale_lr": "linear",
    }
    with pytest.raises(ValidationError, match=r"linear_scaling grows .* and resources.gang, training.batch_size is no"):
        space_of({"training.optimizer.lr": LR}, linear_scaling=True)
    shards = {**parameters, "resources.shards": {"type": "categorical", "choices": [4]}}
    with pytest.raises(ValidationError, match=r"linear_scaling sets resources.shards itself"):
        space_of(shards, linear_scaling=True)


def test_defaults_and_middles() -> None:
    space = space_of(
        {
            "a": {"type": "float", "low": 1.0, "high": 100.0, "log": True},
            "b": {"type": "int", "low": 1, "high": 5},
            "c": {"type": "categorical", "choices": ["x", "y"]},
            "d": {"type": "ordinal", "choices": [8, 16, 32], "when": {"c": "x"}},
            "e": {"type": "ordinal", "choices": [8, 16, 32], "default": 32},
            "f": {"type": "int", "low": 1, "high": 5, "when": {"c": "y"}},
        }
    )
    assert space.usual() == {"a": pytest.approx(10.0), "b": 3, "c": "x", "d": 16, "e": 32}
    assert space.contains(space.usual())


def test_the_network_is_that_of_a_file_or_of_a_point_of_another_space(tmp_path: Path) -> None:
    conv = {"name": "conv_graph", "max_layers": 2}
    inner = make_space("conv_graph", {"max_layers": 2})
    genotype = inner.sample(generator(0))
    wanted = inner.to_descriptor(genotype)
    parameters = {"training.optimizer.lr": LR}
    space = space_of(parameters, network={"space": conv, "genotype": genotype})
    assert space.to_descriptor(space.sample(generator(0))).canonical_hash() == wanted.canonical_hash()
    file = tmp_path / "network.json"
    file.write_text(json.dumps(wanted.to_json()))
    space = space_of(parameters, descriptor=str(file))
    assert space.to_descriptor(space.sample(generator(0))).to_json() == wanted.to_json()
    with pytest.raises(ValueError, match=r"space.network: genotype is no point of the space conv_graph"):
        space_of(parameters, network={"space": conv, "genotype": [1]})
    with pytest.raises(ValueError, match="unknown space 'conv_grph': did you mean conv_graph"):
        space_of(parameters, network={"space": {"name": "conv_grph"}, "genotype": [1]})
    with pytest.raises(ValueError, match="max_layers: 1 is wrong; set a number of at least 2"):
        space_of(parameters, network={"space": {"name": "conv_graph", "max_layers": 1}, "genotype": [1]})
    with pytest.raises(ValueError, match=r"space.descriptor: .*missing.json is no descriptor as JSON"):
        space_of(parameters, descriptor=str(tmp_path / "missing.json"))
    file.write_text('{"layers": [{"kind": 3}]}')
    with pytest.raises(ValueError, match=r"space.descriptor: .*network.json is no descriptor as JSON"):
        space_of(parameters, descriptor=str(file))
    with pytest.raises(ValidationError, match="descriptor and network are both set"):
        space_of(parameters, descriptor=str(file), network={"space": conv, "genotype": genotype})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "at least 1 item"),
        ({"x": {"type": "float", "low": 1.0, "high": 0.0}}, "low 1.0 is above high 0.0; set low to 0.0 or less"),
        ({"x": {"type": "float", "low": 0.0, "high": 1.0, "log": True}}, "low 0.0 has no logarithm; set low above 0"),
        ({"x": {"type": "int", "low": 0, "high": 3, "default": 4}}, "default 4 is not within 0 .. 3"),
        ({"x": {"type": "ordinal", "choices": []}}, "at least 1 item"),
        ({"x": {"type": "ordinal", "choices": [1, 2, 1.0]}}, "1.0 is equal to an earlier choice"),
        ({"x": {"type": "ordinal", "choices": [1, 2], "default": 3}}, "default 3 is not one of the choices"),
        ({"x": {"type": "uniform"}}, "uniform"),
        ({"x": {"type": "ordinal", "choices": [1], "when": {"y": 1}}}, "x: when names 'y', which is no parameter"),
        (
            {"x": {"type": "ordinal", "choices": [1], "when": {"y": 3}}, "y": {"type": "int", "low": 0, "high": 2}},
            "x: when waits for 'y' to be 3, which it never is",
        ),
        ({"x": {"type": "ordinal", "choices": [1], "when": {"x": 1}}}, "the when of x go round in a circle"),
        ({"x": {"type": "ordinal", "choices": [1], "when": {"x": []}}}, "lists no value of 'x'"),
        ({"training.batchsize": BATCH}, "no field of a job; did you mean training.batch_size"),
        ({"training.batch_size.x": BATCH}, "training.batch_size has no fields"),
        (
            {"budget.trials": BATCH},
            "budget.trials: a trial can set fields of training, resources.gang and resources.shards",
        ),
        ({"resources.threads": BATCH}, "resources.threads: a trial can set fields of training"),
    ],
)
def test_options_that_make_no_sense_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        space_of(parameters)
