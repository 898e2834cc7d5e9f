"""Networks together with hyperparameters: the suite of all spaces, and that capabilities are those of both parts."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
from conformance.space_suite import SpaceSuite, generator, make_space, text_of
from pydantic import ValidationError

LR = {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}
GANG = {"type": "ordinal", "choices": [1, 2]}
CONV = {"name": "conv_graph", "max_layers": 3, "channels": [4, 8]}
OPTIONAL = ("neighbours", "encode", "encode_paths", "size", "decisions", "from_decisions", "from_descriptor")


def joint(parameters: dict[str, Any], architecture: dict[str, Any] = CONV, **options: Any) -> Any:
    return make_space("joint", {"architecture": architecture, "hyperparameters": {"parameters": parameters}, **options})


class TestJoint(SpaceSuite):
    name = "joint"
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "floats": {
            "architecture": CONV,
            "hyperparameters": {"parameters": {"training.optimizer.lr": LR, "resources.gang": GANG}},
        },
        "finite": {"architecture": CONV, "hyperparameters": {"parameters": {"resources.gang": GANG}}},
    }


def test_capabilities_are_those_that_both_parts_have() -> None:
    for parameters in ({"training.optimizer.lr": LR}, {"resources.gang": GANG}):
        space = joint(parameters)
        inner, own = space.architecture, space.hyperparameters
        for name in ("neighbours", "encode", "size", "decisions", "from_decisions"):
            assert hasattr(space, name) == (hasattr(inner, name) and hasattr(own, name)), name
        for name in ("encode_paths", "from_descriptor"):
            assert hasattr(space, name) == hasattr(inner, name), name
        assert not hasattr(space, "parameters")
    with pytest.raises(AttributeError, match="Joint has no 'parameters' here"):
        space.parameters()


class Everything:
    """A space of the numbers 0 to 4 with every capability."""

    def neighbours(self, genotype: int) -> list[int]:
        return [(genotype + 1) % 5]

    def encode(self, genotype: int) -> list[float]:
        return [genotype / 4]

    def encode_paths(self, genotype: int) -> list[float]:
        return [0.0, genotype / 4]

    def size(self) -> int:
        return 5

    def decisions(self) -> tuple[int, ...]:
        return (5,)

    def from_decisions(self, choices: Any) -> int:
        return int(choices[0])

    def from_descriptor(self, descriptor: Any) -> int:
        return int(descriptor)

    def mutate(self, genotype: int, rng: Any) -> int:
        return genotype


def test_each_capability_joins_those_of_the_parts() -> None:
    space = joint({"resources.gang": GANG})
    space.architecture = Everything()
    point = {"architecture": 4, "hyperparameters": {"resources.gang": 2}}
    assert list(space.neighbours(point)) == [
        {"architecture": 0, "hyperparameters": {"resources.gang": 2}},
        {"architecture": 4, "hyperparameters": {"resources.gang": 1}},
    ]
    assert space.encode(point) == [1.0, 1.0]
    assert space.encode_paths(point) == [0.0, 1.0, 1.0]
    assert space.size() == 10
    assert space.decisions() == (5, 2)
    assert space.from_decisions((4, 1)) == point
    assert space.from_descriptor(3) == {"architecture": 3, "hyperparameters": {"resources.gang": 1}}
    assert space.settings(point) == {"resources.gang": 2, "resources.shards": 2}


def test_without_counting_there_is_no_size() -> None:
    space = joint({"training.optimizer.lr": LR})
    space.architecture = Everything()
    assert space.size() is None
    assert not hasattr(space, "neighbours")
    assert [name for name in OPTIONAL if hasattr(space, name)] == ["encode", "encode_paths", "size", "from_descriptor"]


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.3, 240, 360), (1.0, 1000, 1000)])
def test_mutations_change_one_part_as_often_as_asked(share: float, low: int, high: int) -> None:
    space = joint({"training.optimizer.lr": LR}, hyperparameter_mutations=share)
    rng = generator(1)
    parent = space.sample(rng)
    changed = []
    for _ in range(1000):
        child = space.mutate(parent, rng)
        changed.append([key for key in parent if child[key] != parent[key]])
    assert all(len(keys) == 1 for keys in changed)
    assert low <= changed.count(["hyperparameters"]) <= high


def test_where_one_part_has_no_other_point_the_other_is_mutated() -> None:
    space = joint({"training.optimizer.lr": LR}, hyperparameter_mutations=0.0)
    space.architecture = Everything()
    parent = {"architecture": 4, "hyperparameters": {"training.optimizer.lr": 0.01}}
    child = space.mutate(parent, generator(0))
    assert child["architecture"] == 4
    assert child["hyperparameters"] != parent["hyperparameters"]


def test_the_network_is_that_of_the_architecture() -> None:
    space, inner = joint({"training.optimizer.lr": LR}), make_space("conv_graph", {"max_layers": 3, "channels": [4, 8]})
    point = space.sample(generator(0))
    assert space.to_descriptor(point).to_json() == inner.to_descriptor(point["architecture"]).to_json()


def test_options_inside_are_checked_and_completed() -> None:
    from nord_hpc.spaces.joint import Joint

    options = Joint.Options.model_validate(
        {"architecture": {"name": "conv_graph"}, "hyperparameters": {"parameters": {"resources.gang": GANG}}}
    )
    resolved = options.model_dump(mode="json")
    assert resolved["architecture"]["max_layers"] == 6
    assert Joint.Options.model_validate(json.loads(text_of(resolved))) == options
    with pytest.raises(ValidationError, match="max_layer: is not a known key"):
        joint({"resources.gang": GANG}, {"name": "conv_graph", "max_layer": 3})
    with pytest.raises(ValidationError, match="unknown space 'conv'"):
        joint({"resources.gang": GANG}, {"name": "conv"})
    with pytest.raises(ValidationError, match=r"hyperparameters.descriptor"):
        make_space(
            "joint",
            {"architecture": CONV, "hyperparameters": {"parameters": {"resources.gang": GANG}, "descriptor": "x"}},
        )
