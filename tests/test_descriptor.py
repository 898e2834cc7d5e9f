"""NeuralDescriptor: its interface, its errors, its JSON form and repr, and what its hash sees."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nord_hpc.descriptor import Layer, NeuralDescriptor
from nord_hpc.errors import Infeasible


def fork(join: str = "add") -> NeuralDescriptor:
    """in -> (left, right) -> out."""
    descriptor = NeuralDescriptor()
    descriptor.add_layer("Conv2d", {"out_channels": 4, "kernel_size": 3}, "in")
    descriptor.add_layer("ReLU", name="left")
    descriptor.add_layer("Tanh", name="right")
    descriptor.add_layer("Identity", name="out", join=join)
    for source, target in (("in", "left"), ("in", "right"), ("left", "out"), ("right", "out")):
        descriptor.connect_layers(source, target)
    return descriptor


def test_layers_connections_first_and_last() -> None:
    descriptor = fork("mean")
    assert list(descriptor.layers) == ["in", "left", "right", "out"]
    assert descriptor.layers["in"] == Layer("Conv2d", {"out_channels": 4, "kernel_size": 3})
    assert descriptor.layers["out"].join == "mean"
    assert descriptor.connections == [("in", "left"), ("in", "right"), ("left", "out"), ("right", "out")]
    assert descriptor.inputs("out") == ("left", "right")
    assert (descriptor.first_layer, descriptor.last_layer, len(descriptor)) == ("in", "out", 4)


def test_sequential_layers_are_connected_to_the_last_and_named() -> None:
    descriptor = NeuralDescriptor()
    assert descriptor.add_layer_sequential("Conv2d", {"out_channels": 4, "kernel_size": 1}) == "layer0"
    assert descriptor.add_layer_sequential("ReLU", None, "layer2") == "layer2"
    assert descriptor.add_layer_sequential("Tanh") == "layer3"
    assert descriptor.connections == [("layer0", "layer2"), ("layer2", "layer3")]


def test_classes_of_torch_go_by_their_name_and_others_by_module_too() -> None:
    nn = pytest.importorskip("torch.nn")
    descriptor = NeuralDescriptor()
    descriptor.add_layer(nn.Conv2d, {"in_channels": 3, "out_channels": 5, "kernel_size": 5}, "conv")
    descriptor.add_layer_sequential(OrderedDict, None, "custom")
    assert [layer.kind for layer in descriptor.layers.values()] == ["Conv2d", "collections:OrderedDict"]


def test_connecting_twice_changes_nothing_and_disconnecting_takes_away() -> None:
    descriptor = fork()
    before = descriptor.canonical_hash()
    descriptor.connect_layers("left", "out")
    assert descriptor.inputs("out") == ("left", "right")
    assert descriptor.canonical_hash() == before
    descriptor.disconnect_layers("left", "out")
    assert descriptor.inputs("out") == ("right",)
    assert descriptor.canonical_order() == ["in", "right", "out"]


def test_suffix_renames_everything() -> None:
    descriptor = fork()
    before = descriptor.canonical_hash()
    descriptor.add_suffix("_1")
    assert (descriptor.first_layer, descriptor.last_layer) == ("in_1", "out_1")
    assert descriptor.connections[-1] == ("right_1", "out_1")
    assert descriptor.canonical_hash() == before


def test_first_and_last_can_be_set() -> None:
    descriptor = fork()
    descriptor.first_layer, descriptor.last_layer = "left", "out"
    assert descriptor.canonical_order() == ["left", "out"]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda d: d.add_layer("ReLU", None, "in"), "there already is a layer 'in'"),
        (lambda d: d.connect_layers("in", "gone"), "there is no layer 'gone'"),
        (lambda d: d.connect_layers("gone", "in"), "there is no layer 'gone'"),
        (lambda d: d.connect_layers("in", "in"), "layer 'in' cannot be connected to itself"),
        (lambda d: d.disconnect_layers("out", "in"), "layer 'out' is not connected to 'in'"),
        (lambda d: setattr(d, "last_layer", "gone"), "there is no layer 'gone'"),
        (lambda d: setattr(d, "first_layer", "gone"), "there is no layer 'gone'"),
        (lambda d: d.inputs("gone"), "there is no layer 'gone'"),
        (lambda d: d.add_layer("ReLU", None, "x", join="sum"), "layer 'x': join 'sum' is not one of add, mean, concat"),
        (lambda d: d.add_layer("ReLU", None, 7), "a layer's name is text, not 7"),
        (lambda d: d.add_layer(7, None, "x"), "layer 'x': kind 7 is neither a name nor a class"),
        (lambda d: d.add_layer("ReLU", {"p": {1, 2}}, "x"), "layer 'x': p is {1, 2}, which JSON does not know"),
        (lambda d: d.add_layer("ReLU", {"p": [1j]}, "x"), "layer 'x': p is 1j, which JSON does not know"),
        (lambda d: d.add_layer("ReLU", {"p": float("nan")}, "x"), "layer 'x': p is nan, which JSON does not know"),
        (lambda d: d.add_layer("ReLU", {3: 1}, "x"), "layer 'x': parameters has a key that is not text: 3"),
    ],
)
def test_wrong_use_is_refused_in_one_line_and_changes_nothing(act: Any, message: str) -> None:
    descriptor = fork()
    with pytest.raises(ValueError) as caught:
        act(descriptor)
    assert str(caught.value) == message
    assert descriptor == fork()


def test_parameters_become_json() -> None:
    descriptor = NeuralDescriptor()
    given_parameters: dict[str, Any] = {
        "tuple": (1, (2, 3)),
        "integer": np.int64(3),
        "float": np.float32(0.5),
        "flag": np.bool_(True),
        "array": np.arange(3),
        "none": None,
        "text": "same",
        "dict": {"a": (1,)},
    }
    descriptor.add_layer("X", given_parameters, "x")
    parameters = descriptor.layers["x"].parameters
    expected = {
        "tuple": [1, [2, 3]],
        "integer": 3,
        "float": 0.5,
        "flag": True,
        "array": [0, 1, 2],
        "none": None,
        "text": "same",
        "dict": {"a": [1]},
    }
    assert parameters == expected
    assert [type(parameters[key]) for key in ("integer", "float", "flag")] == [int, float, bool]
    given_parameters["dict"]["a"] = 5
    assert descriptor.layers["x"].parameters == expected


def test_copy_is_independent() -> None:
    descriptor = fork()
    other = descriptor.copy()
    assert other == descriptor
    other.disconnect_layers("left", "out")
    other.add_layer_sequential("ReLU")
    assert descriptor == fork()
    assert other != descriptor
    assert descriptor.canonical_hash() == fork().canonical_hash() != other.canonical_hash()


def test_equality_sees_names_and_order_of_inputs_and_the_hash_does_not() -> None:
    one, two = fork(), fork()
    two.disconnect_layers("left", "out")
    two.connect_layers("left", "out")
    assert one != two
    assert one.canonical_hash() == two.canonical_hash()
    assert one != "fork"
    with pytest.raises(TypeError):
        hash(one)


def test_hash_sees_parameters_but_not_the_type_of_equal_numbers() -> None:
    def with_parameters(parameters: dict[str, Any]) -> str:
        descriptor = NeuralDescriptor()
        descriptor.add_layer("Conv2d", parameters)
        return descriptor.canonical_hash()

    first = with_parameters({"out_channels": 4, "bias": True, "kernel_size": [3, 3]})
    assert first == with_parameters({"kernel_size": (3.0, np.int8(3)), "bias": 1, "out_channels": np.float64(4)})
    assert first != with_parameters({"out_channels": 4, "bias": False, "kernel_size": [3, 3]})
    assert first != with_parameters({"out_channels": 4, "bias": True, "kernel_size": [3, 4]})
    assert first != with_parameters({"out_channels": 4, "bias": True})
    assert with_parameters({"p": 0.1}) != with_parameters({"p": 0.2})
    assert with_parameters({"p": "1"}) != with_parameters({"p": 1})


def test_hash_of_a_known_descriptor_stays() -> None:
    """Stored runs hold hashes; a change of this one makes them void."""
    assert fork().canonical_hash() == "84d29dd39e35082c9414cdb81d92449a02c7ff8b11fda5481a7a54587a490815"


def test_a_cell_is_one_whatever_holds_its_matrix_and_prunes() -> None:
    """A 7-vertex cell with two dead ones, its matrix as int, bool, float and list, and its layers in reverse order."""
    pairs = ["0-1", "0-3", "0-5", "0-6", "1-4", "1-5", "1-6", "2-3", "2-5", "2-6", "3-5", "3-6", "5-6"]
    matrix = np.zeros((7, 7), dtype=int)
    for pair in pairs:
        matrix[tuple(map(int, pair.split("-")))] = 1
    kinds = ["in", "pool", "c1", "c3", "c3", "c3", "out"]

    def cell(rows: Any, order: list[int]) -> NeuralDescriptor:
        descriptor = NeuralDescriptor()
        for vertex in order:
            descriptor.add_layer(kinds[vertex], {"channels": rows[0][1]}, f"v{vertex}")
        for source in order:
            for target in order:
                if rows[source][target]:
                    descriptor.connect_layers(f"v{source}", f"v{target}")
        descriptor.first_layer, descriptor.last_layer = "v0", "v6"
        return descriptor

    forward = list(range(7))
    forms = [matrix, matrix.astype(bool), matrix.astype(float), matrix.tolist(), dict(enumerate(matrix.tolist()))]
    cells = [cell(rows, order) for rows in forms for order in (forward, forward[::-1])]
    assert len({descriptor.canonical_hash() for descriptor in cells}) == 1
    form = cells[0].canonical_form()
    assert sorted(form.order) == ["v0", "v1", "v3", "v5", "v6"]
    assert sum(map(len, form.inputs)) == 9


def test_dead_ends_leave_input_and_output() -> None:
    descriptor = NeuralDescriptor()
    for vertex in range(7):
        descriptor.add_layer("Identity", None, str(vertex))
    for vertex in range(1, 7):
        descriptor.connect_layers("0", str(vertex))
    for vertex in range(2, 5):
        descriptor.connect_layers("1", str(vertex))
    assert descriptor.canonical_order() == ["0", "6"]


def test_check_names_what_is_wrong() -> None:
    descriptor = fork()
    descriptor.check()
    descriptor.connect_layers("out", "left")
    with pytest.raises(Infeasible, match=r"^a cycle: 'left' -> 'out' -> 'left'$"):
        descriptor.check()
    descriptor = fork()
    descriptor.add_layer("ReLU", None, "alone")
    with pytest.raises(Infeasible, match=r"^no path from 'in' to 'alone'$"):
        descriptor.check()
    with pytest.raises(Infeasible, match=r"^the descriptor has no layers$"):
        NeuralDescriptor().check()


def test_networkx_view_has_everything() -> None:
    graph = fork("concat").to_networkx()
    assert dict(graph.nodes["in"]) == {
        "kind": "Conv2d",
        "parameters": {"out_channels": 4, "kernel_size": 3},
        "join": "add",
    }
    assert graph.nodes["out"]["join"] == "concat"
    assert list(graph.edges(data="place")) == [
        ("in", "left", 0),
        ("in", "right", 0),
        ("left", "out", 0),
        ("right", "out", 1),
    ]


def test_repr_is_readable() -> None:
    assert repr(fork("concat")).splitlines() == [
        'NeuralDescriptor "in" ... "out"',
        '  "in" = "Conv2d" {"out_channels": 4, "kernel_size": 3} <- add []',
        '  "left" = "ReLU" {} <- add ["in"]',
        '  "right" = "Tanh" {} <- add ["in"]',
        '  "out" = "Identity" {} <- concat ["left", "right"]',
    ]


def test_repr_with_its_own_signs_in_texts_is_read() -> None:
    descriptor = NeuralDescriptor()
    descriptor.add_layer('a" = "b', {" <- add [": " <- concat [1]", "\n": "\u2028"}, "<- mean []", join="mean")
    assert NeuralDescriptor.from_repr(repr(descriptor)) == descriptor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "__import__('os')",
        'NeuralDescriptor "a" ... "a" x',
        'NeuralDescriptor "a" ... "a"\n  "a" = "ReLU" {1}',
        'NeuralDescriptor "a" ... "a"\n  "a" = "ReLU" {} <- sum []',
        'NeuralDescriptor "a" ... "a"\n  "a" = "ReLU" {} <- add [] add',
    ],
)
def test_other_text_is_not_a_repr(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not the repr of a descriptor: "):
        NeuralDescriptor.from_repr(text)


def test_other_values_are_not_the_json_form() -> None:
    with pytest.raises(ValueError, match=r"^not the JSON form of a descriptor: KeyError: 'layers'$"):
        NeuralDescriptor.from_json({})
    with pytest.raises(ValueError, match=r"^not the JSON form of a descriptor: TypeError"):
        NeuralDescriptor.from_json({"layers": [3]})


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def descriptors(draw: st.DrawFn) -> NeuralDescriptor:
    descriptor = NeuralDescriptor()
    names = draw(st.lists(st.text(), unique=True, max_size=6))
    for name in names:
        kind = draw(st.text(min_size=1))
        parameters = draw(st.dictionaries(st.text(), _json_values, max_size=3))
        descriptor.add_layer(kind, parameters, name, join=draw(st.sampled_from(["add", "mean", "concat"])))
    if len(names) > 1:
        for source, target in draw(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(names)), max_size=12)):
            if source != target:
                descriptor.connect_layers(source, target)
    return descriptor


@settings(deadline=None, max_examples=150)
@given(descriptors())
def test_json_repr_copy_and_pickle_round_trip(descriptor: NeuralDescriptor) -> None:
    text = json.dumps(descriptor.to_json(), allow_nan=False)
    for other in (
        NeuralDescriptor.from_json(json.loads(text)),
        NeuralDescriptor.from_repr(repr(descriptor)),
        pickle.loads(pickle.dumps(descriptor)),
        copy.deepcopy(descriptor),
        descriptor.copy(),
    ):
        assert other == descriptor
        assert json.dumps(other.to_json()) == text
        assert _form(other) == _form(descriptor)


def _form(descriptor: NeuralDescriptor) -> object:
    try:
        return descriptor.canonical_form()
    except Infeasible as error:
        return error.reason


def test_descriptor_and_planning_import_neither_torch_nor_networkx() -> None:
    code = """
import sys
from nord_hpc.builder import plan
from nord_hpc.descriptor import NeuralDescriptor
d = NeuralDescriptor()
d.add_layer("Conv2d", {"out_channels": 4, "kernel_size": 3})
print(plan(d, input_shape=(1, 8, 8), n_outputs=10).n_parameters)
assert not {"torch", "networkx", "mpi4py"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("90\n", "")
