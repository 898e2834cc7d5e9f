"""NeuralDescriptor: a network as a graph of named layers; what its layers mean is left to the builder.

A descriptor is built by mutating calls and then treated as a value: operators of a search space copy it first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nord_hpc.canonical import CanonicalForm, canonical_form
from nord_hpc.errors import Infeasible
from nord_hpc.sources import name_in_file
from nord_hpc.trial import Json

if TYPE_CHECKING:
    import networkx  # type: ignore[import-untyped]

JOINS = ("add", "mean", "concat")
"""How several inputs of a layer become one."""

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer.

    Attributes:
        kind: name of an operation such as "Conv2d", or a custom class as "module:QualName" or "file.py:Class".
        parameters: by name, JSON values.
        join: one of `JOINS`; means nothing for fewer than two inputs.
        label: kind and parameters as text, equal for equal values (1 == 1.0 == True).
    """

    kind: str
    parameters: dict[str, Json]
    join: str = "add"
    label: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", _encode([self.kind, _with_equal_numbers_alike(self.parameters)]))


class NeuralDescriptor:
    """A directed graph of named layers with a first and a last one.

    Wrong use (unknown or repeated names, a layer connected to itself, parameters that JSON does not know) raises
    ValueError with one line. Whether a path leads from the first to the last layer is seen by `check`.
    """

    def __init__(self) -> None:
        self._layers: dict[str, Layer] = {}
        self._inputs: dict[str, dict[str, None]] = {}
        self._first: str | None = None
        self._last: str | None = None
        self._form: CanonicalForm | None = None

    # Building

    def add_layer(
        self,
        kind: str | type,
        parameters: Mapping[str, Any] | None = None,
        name: str | None = None,
        *,
        join: str = "add",
    ) -> str:
        """Add a layer that is connected to nothing yet; it becomes the last one, and the first one added is the first.

        Args:
            kind: name of an operation, or a class: one of torch.nn or of the builder's own by its name, one of the
                start script or of a plug-in file as "FILE.py:QualName", any other as "module:QualName".
            parameters: of the layer. Tuples become lists, numpy's numbers and arrays Python's.
            name: any text; one is made up where None.
            join: how several inputs become one: "add", "mean" or "concat" (in the order of connection).

        Returns:
            The name.
        """
        if name is None:
            name = self._free_name()
        elif not isinstance(name, str):
            raise ValueError(f"a layer's name is text, not {name!r}")
        if name in self._layers:
            raise ValueError(f"there already is a layer {name!r}")
        if join not in JOINS:
            raise ValueError(f"layer {name!r}: join {join!r} is not one of {', '.join(JOINS)}")
        normalized = _normalized(parameters or {}, layer=name, key="parameters")
        self._layers[name] = Layer(_kind_of(kind, layer=name), normalized, join)
        self._inputs[name] = {}
        if self._first is None:
            self._first = name
        self._last = name
        self._form = None
        return name

    def add_made_layer(self, name: str, layer: Layer, inputs: Iterable[str] = ()) -> None:
        """Add a layer that was made before, fed by `inputs` in their order: the fast way of spaces with few layers.

        Args:
            layer: its parameters are shared, not copied.
        """
        if name in self._layers:
            raise ValueError(f"there already is a layer {name!r}")
        sources = dict.fromkeys(inputs)
        for source in sources:
            self._require(source)
        self._layers[name] = layer
        self._inputs[name] = sources
        if self._first is None:
            self._first = name
        self._last = name
        self._form = None

    def add_layer_sequential(
        self,
        kind: str | type,
        parameters: Mapping[str, Any] | None = None,
        name: str | None = None,
        *,
        join: str = "add",
    ) -> str:
        """Add a layer and connect the one that was last before to it. See `add_layer`."""
        previous = self._last
        name = self.add_layer(kind, parameters, name, join=join)
        if previous is not None:
            self.connect_layers(previous, name)
        return name

    def connect_layers(self, source: str, target: str) -> None:
        """Feed the output of `source` to `target`, after the inputs that it has; does nothing if it is fed already."""
        self._require(source)
        self._require(target)
        if source == target:
            raise ValueError(f"layer {source!r} cannot be connected to itself")
        self._inputs[target].setdefault(source)
        self._form = None

    def disconnect_layers(self, source: str, target: str) -> None:
        """Take the connection from `source` to `target` away."""
        self._require(source)
        self._require(target)
        if source not in self._inputs[target]:
            raise ValueError(f"layer {source!r} is not connected to {target!r}")
        del self._inputs[target][source]
        self._form = None

    def add_suffix(self, suffix: str) -> None:
        """Append `suffix` to the name of every layer."""
        self._layers = {name + suffix: layer for name, layer in self._layers.items()}
        self._inputs = {
            name + suffix: {source + suffix: None for source in sources} for name, sources in self._inputs.items()
        }
        self._first = None if self._first is None else self._first + suffix
        self._last = None if self._last is None else self._last + suffix
        self._form = None

    @property
    def first_layer(self) -> str | None:
        """The layer that gets the data; the first one added, unless set. None while there are no layers."""
        return self._first

    @first_layer.setter
    def first_layer(self, name: str) -> None:
        self._require(name)
        self._first = name
        self._form = None

    @property
    def last_layer(self) -> str | None:
        """The layer whose output is the network's; the last one added, unless set. None while there are no layers."""
        return self._last

    @last_layer.setter
    def last_layer(self, name: str) -> None:
        self._require(name)
        self._last = name
        self._form = None

    # Reading

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layers by name, in the order in which they were added."""
        return MappingProxyType(self._layers)

    @property
    def connections(self) -> list[tuple[str, str]]:
        """All (source, target) pairs, by target in the order of addition, then in the order of connection."""
        return [(source, target) for target, sources in self._inputs.items() for source in sources]

    def inputs(self, name: str) -> tuple[str, ...]:
        """The layers that feed `name`, in the order of connection."""
        self._require(name)
        return tuple(self._inputs[name])

    def __len__(self) -> int:
        return len(self._layers)

    def __eq__(self, other: object) -> bool:
        """Whether names, layers, connections with their order, first and last are equal. See also `canonical_hash`."""
        if not isinstance(other, NeuralDescriptor):
            return NotImplemented
        if (self._first, self._last, self._layers) != (other._first, other._last, other._layers):
            return False
        return all(list(sources) == list(other._inputs[name]) for name, sources in self._inputs.items())

    __hash__ = None  # type: ignore[assignment]

    def copy(self) -> NeuralDescriptor:
        """A descriptor that changes independently of this one."""
        other = NeuralDescriptor()
        other._layers = dict(self._layers)
        other._inputs = {name: dict(sources) for name, sources in self._inputs.items()}
        other._first, other._last, other._form = self._first, self._last, self._form
        return other

    # The graph as such

    def check(self) -> None:
        """Raise `Infeasible` unless a path leads from the first to the last layer, and no cycle lies on the way."""
        self.canonical_form()

    def canonical_form(self) -> CanonicalForm:
        """Live layers in canonical order, with the positions of their inputs.

        Raises:
            Infeasible: see `check`.
        """
        if self._form is None:
            if self._first is None or self._last is None:
                raise Infeasible("the descriptor has no layers")
            self._form = canonical_form(
                first=self._first,
                last=self._last,
                labels={name: layer.label for name, layer in self._layers.items()},
                joins={name: layer.join for name, layer in self._layers.items()},
                inputs=self._inputs,
            )
        return self._form

    def canonical_hash(self) -> str:
        """SHA-256 in hexadecimal: equal exactly when the graphs of live layers are isomorphic with their parameters."""
        return self.canonical_form().sha256

    def canonical_order(self) -> list[str]:
        """The live layers in a topological order that depends neither on names nor on the order of addition."""
        return list(self.canonical_form().order)

    # Other forms

    def to_json(self) -> dict[str, Json]:
        """A JSON value; `from_json` of it gives an equal descriptor."""
        layers = [
            {
                "name": name,
                "kind": layer.kind,
                "parameters": _copied(layer.parameters),
                "join": layer.join,
                "inputs": list(self._inputs[name]),
            }
            for name, layer in self._layers.items()
        ]
        return {"first": self._first, "last": self._last, "layers": layers}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> NeuralDescriptor:
        """The descriptor that `to_json` was called on."""
        descriptor = cls()
        try:
            for layer in value["layers"]:
                descriptor.add_layer(layer["kind"], layer["parameters"], layer["name"], join=layer["join"])
            for layer in value["layers"]:
                for source in layer["inputs"]:
                    descriptor.connect_layers(source, layer["name"])
            if descriptor._layers:
                descriptor.first_layer, descriptor.last_layer = value["first"], value["last"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the JSON form of a descriptor: {type(error).__name__}: {error}") from error
        return descriptor

    def __repr__(self) -> str:
        """One line for each layer; `from_repr` reads it.

        Example: `"pool" = "MaxPool2d" {"kernel_size": 2} <- add ["conv", "skip"]`
        """
        lines = [f"NeuralDescriptor {json.dumps(self._first)} ... {json.dumps(self._last)}"]
        for name, layer in self._layers.items():
            line = f"  {json.dumps(name)} = {json.dumps(layer.kind)} {json.dumps(layer.parameters)} <- {layer.join} "
            lines.append(line + json.dumps(list(self._inputs[name])))
        return "\n".join(lines)

    @classmethod
    def from_repr(cls, text: str) -> NeuralDescriptor:
        """The descriptor whose `repr` is `text`; nothing in the text is executed."""
        head, *lines = text.strip().splitlines() or [""]
        (first, last), rest = _scan(head, "NeuralDescriptor ", None, " ... ", None)
        if rest:
            raise _not_a_repr(head)
        layers = []
        for line in lines:
            (name, kind, parameters), tail = _scan(line.strip(), None, " = ", None, " ", None)
            join = tail.removeprefix(" <- ").partition(" ")[0]
            (inputs,), rest = _scan(tail, f" <- {join} ", None)
            if rest or join not in JOINS:
                raise _not_a_repr(line)
            layers.append({"name": name, "kind": kind, "parameters": parameters, "join": join, "inputs": inputs})
        return cls.from_json({"first": first, "last": last, "layers": layers})

    def to_networkx(self) -> networkx.DiGraph:
        """The graph with all layers, dead ones too: nodes have `kind`, `parameters` and `join`, edges have `place`."""
        import networkx

        graph = networkx.DiGraph()
        for name, layer in self._layers.items():
            graph.add_node(name, kind=layer.kind, parameters=dict(layer.parameters), join=layer.join)
        for target, sources in self._inputs.items():
            for place, source in enumerate(sources):
                graph.add_edge(source, target, place=place)
        return graph

    def _require(self, name: str) -> None:
        if name not in self._layers:
            raise ValueError(f"there is no layer {name!r}")

    def _free_name(self) -> str:
        number = len(self._layers)
        while f"layer{number}" in self._layers:
            number += 1
        return f"layer{number}"


def _kind_of(kind: str | type, *, layer: str) -> str:
    if isinstance(kind, str) and kind:
        return kind
    if isinstance(kind, type):
        if kind.__module__ == "torch.nn" or kind.__module__.startswith(("torch.nn.", "nord_hpc.builder.")):
            return kind.__name__
        if "<locals>" in kind.__qualname__:
            raise ValueError(
                f"layer {layer!r}: class {kind.__qualname__} of {kind.__module__} is made inside a function, where "
                f"other processes cannot find it; define it at the top level of a file"
            )
        return name_in_file(kind) or f"{kind.__module__}:{kind.__qualname__}"
    raise ValueError(f"layer {layer!r}: kind {kind!r} is neither a name nor a class")


def _normalized(value: Any, *, layer: str, key: str) -> Any:
    """A copy of `value` made of JSON's own types."""
    kind = type(value)
    if value is None or kind in (str, int, bool) or (kind is float and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"layer {layer!r}: {key} has a key that is not text: {name!r}")
        return {name: _normalized(item, layer=layer, key=name) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_normalized(item, layer=layer, key=key) for item in value]
    if hasattr(value, "tolist") and type(value).__module__.partition(".")[0] == "numpy":
        return _normalized(value.tolist(), layer=layer, key=key)
    if isinstance(value, (str, int)):
        return str.__str__(value) if isinstance(value, str) else int(value)
    raise ValueError(f"layer {layer!r}: {key} is {value!r}, which JSON does not know")


def _copied(value: Json) -> Json:
    """A copy of a JSON value that changes independently of it."""
    if isinstance(value, dict):
        return {key: _copied(item) if isinstance(item, (dict, list)) else item for key, item in value.items()}
    return [_copied(item) if isinstance(item, (dict, list)) else item for item in value]


def _with_equal_numbers_alike(value: Json) -> Json:
    """A copy in which numbers that Python finds equal, such as 1, 1.0 and True, are of one type."""
    if isinstance(value, (bool, float)):
        return int(value) if value == int(value) else value
    if isinstance(value, dict):
        return {key: _with_equal_numbers_alike(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_equal_numbers_alike(item) for item in value]
    return value


def _scan(line: str, *pattern: str | None) -> tuple[list[Json], str]:
    """The JSON values at the begin of a line, where `pattern` has None, between the given texts; and the rest of it."""
    decoder = json.JSONDecoder()
    values = []
    at = 0
    for text in pattern:
        if text is None:
            try:
                value, at = decoder.raw_decode(line, at)
            except ValueError as error:
                raise _not_a_repr(line) from error
            values.append(value)
        elif line.startswith(text, at):
            at += len(text)
        else:
            raise _not_a_repr(line)
    return values, line[at:]


def _not_a_repr(line: str) -> ValueError:
    return ValueError(f"not the repr of a descriptor: {line.strip()!r}")
