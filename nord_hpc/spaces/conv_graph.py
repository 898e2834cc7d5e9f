"""Graphs of convolutional layers with skip connections, as a search space; the head is the builder's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nord_hpc.descriptor import Layer, NeuralDescriptor
from nord_hpc.spaces.conv_decisions import INPUT, ConvDecisions
from nord_hpc.trial import Json

ACTIVATION_KINDS = {
    "relu": "ReLU",
    "elu": "ELU",
    "gelu": "GELU",
    "leaky_relu": "LeakyReLU",
    "sigmoid": "Sigmoid",
    "silu": "SiLU",
    "tanh": "Tanh",
}
POOLING_KINDS = {"max": "MaxPool2d", "avg": "AvgPool2d"}
FIELDS = ("channels", "kernel", "activation", "normalization", "pooling")
KEYS = frozenset({*FIELDS, "inputs"})
IDENTITY = Layer("Identity", {})

# Shares of the layers that a sample gives a second input, and of those whose only input is not the layer before.
SKIP_SHARE = 0.3
BRANCH_SHARE = 0.1
# Shares of the kinds of mutation, in the order of `ConvGraph._mutations`; a kind that cannot act leaves it to the next.
MUTATION_SHARES = (0.5, 0.2, 0.15, 0.15)
MUTATION_BOUNDS = tuple(sum(MUTATION_SHARES[: k + 1]) for k in range(len(MUTATION_SHARES) - 1))
DRAWS_PER_LAYER = 8


class ConvGraph:
    """Directed acyclic graphs of convolution, normalization, activation and pooling.

    A genotype is the list of its layers in topological order, each a mapping of `channels`, `kernel`, `activation`,
    `normalization`, `pooling` and `inputs`: the sorted indices of the layers that it reads, -1 being the network's
    input. The first layer reads the input alone, and each layer but the last is read by a later one. Without `skip`
    each layer reads the one before.

    Convolutions keep height and width (stride 1, padding kernel // 2); poolings halve them.
    """

    class Options(BaseModel):
        """What the layers may be. A choice that is listed twice is drawn twice as often.

        Attributes:
            min_layers, max_layers: convolutions of a network, first to last.
            channels: of a convolution's output.
            kernels: side of a convolution's window, odd.
            activations: after a convolution and its normalization.
            normalization: `batch` normalization after a convolution, or `none`.
            pooling: at the end of a layer: `none`, `max` or `avg`, over 2 x 2.
            max_poolings: layers of a network that may pool; how many do is drawn first, uniformly, then which.
            skip: whether layers may read several earlier ones, or none of the one before.
            join: how several inputs of a layer become one.
        """

        model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

        max_layers: int = Field(6, ge=2)
        min_layers: int = Field(2, ge=1)
        channels: tuple[int, ...] = (8, 16, 32)
        kernels: tuple[int, ...] = (1, 3, 3, 5)
        activations: tuple[Literal["relu", "elu", "gelu", "leaky_relu", "sigmoid", "silu", "tanh"], ...] = ("relu",)
        normalization: tuple[Literal["batch", "none"], ...] = ("batch",)
        pooling: tuple[Literal["none", "max", "avg"], ...] = ("none", "max", "avg")
        max_poolings: int = Field(2, ge=0)
        skip: bool = True
        join: Literal["add", "mean", "concat"] = "add"

        @field_validator("channels", "kernels", "activations", "normalization", "pooling")
        @classmethod
        def _not_empty(cls, choices: tuple[object, ...]) -> tuple[object, ...]:
            if not choices:
                raise ValueError("is empty; set at least one choice")
            return choices

        @field_validator("channels")
        @classmethod
        def _positive(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
            if min(channels) < 1:
                raise ValueError(f"{min(channels)} channels are too few; set 1 or more")
            return channels

        @field_validator("kernels")
        @classmethod
        def _odd(cls, kernels: tuple[int, ...]) -> tuple[int, ...]:
            for kernel in kernels:
                if kernel < 1 or kernel % 2 == 0:
                    raise ValueError(
                        f"a kernel of {kernel} cannot keep height and width; set odd sides such as 1, 3, 5"
                    )
            return kernels

        @model_validator(mode="after")
        def _consistent(self) -> ConvGraph.Options:
            if self.min_layers > self.max_layers:
                raise ValueError(
                    f"min_layers {self.min_layers} is above max_layers {self.max_layers}; "
                    f"set min_layers to {self.max_layers} or less"
                )
            if "none" not in self.pooling and self.max_poolings < self.max_layers:
                raise ValueError(
                    f"every layer pools, and max_poolings is {self.max_poolings}; add none to pooling, "
                    f"or set max_poolings to {self.max_layers} or more"
                )
            return self

    def __init__(self, options: Options) -> None:
        self._min_layers, self._max_layers = options.min_layers, options.max_layers
        self._max_poolings = options.max_poolings if len(options.pooling) > options.pooling.count("none") else 0
        self._skip, self._join = options.skip, options.join
        self._chains: dict[tuple[Any, ...], tuple[Layer, ...]] = {}
        self._choices: dict[str, tuple[Json, ...]] = {
            "channels": options.channels,
            "kernel": options.kernels,
            "activation": options.activations,
            "normalization": options.normalization,
            "pooling": options.pooling if self._max_poolings else ("none",),
        }
        self._decisions = ConvDecisions(
            self._choices, min_layers=self._min_layers, max_layers=self._max_layers, skip=self._skip
        )
        self._pooled = tuple(choice for choice in self._choices["pooling"] if choice != "none")
        self._may_not_pool = "none" in self._choices["pooling"]
        # The choices other than a value, repeats kept, and the fields that have another choice at all.
        self._others = {
            field: {value: tuple(other for other in choices if other != value) for value in choices}
            for field, choices in self._choices.items()
        }
        self._open_fields = tuple(field for field in FIELDS if len(self._others[field]) > 1)
        self._mutations = (self._change_field, self._change_edge, self._add_layer, self._remove_layer)

    def sample(self, rng: np.random.Generator) -> Json:
        """A random genotype: mostly chains, with some skips and branches."""
        draws = rng.random(2 + DRAWS_PER_LAYER * self._max_layers).tolist()
        n_layers = self._min_layers + int(draws[0] * (self._max_layers - self._min_layers + 1))
        most = min(self._max_poolings, n_layers)
        poolings_left = int(draws[1] * (most + 1)) if self._may_not_pool else n_layers
        layers: list[Json] = []
        at = 2
        for index in range(n_layers):
            u_channels, u_kernel, u_activation, u_norm, u_pool, u_pool_kind, u_skip, u_source = draws[at : at + 8]
            at += DRAWS_PER_LAYER
            pooling = "none"
            # Selection sampling: each set of `poolings_left` of the layers is equally likely.
            if u_pool * (n_layers - index) < poolings_left:
                pooling = _pick(self._pooled, u_pool_kind)
                poolings_left -= 1
            inputs = [index - 1]
            if self._skip and index and u_skip < SKIP_SHARE + BRANCH_SHARE:
                source = int(u_source * index) - 1
                inputs = [source] if u_skip < BRANCH_SHARE else [source, index - 1]
            layers.append(
                {
                    "channels": _pick(self._choices["channels"], u_channels),
                    "kernel": _pick(self._choices["kernel"], u_kernel),
                    "activation": _pick(self._choices["activation"], u_activation),
                    "normalization": _pick(self._choices["normalization"], u_norm),
                    "pooling": pooling,
                    "inputs": inputs,
                }
            )
        _read_all(layers)
        return layers

    def mutate(self, genotype: Json, rng: np.random.Generator) -> Json:
        """One of `neighbours(genotype)`: a field, an edge, or a layer more or less."""
        layers = _copy(genotype)
        drawn = rng.random()
        first = 0
        while first < len(MUTATION_BOUNDS) and drawn >= MUTATION_BOUNDS[first]:
            first += 1
        for step in range(len(self._mutations)):
            if self._mutations[(first + step) % len(self._mutations)](layers, rng):
                break
        return layers

    def crossover(self, first: Json, second: Json, rng: np.random.Generator) -> Json:
        """The beginning of `first` followed by the end of `second`, at least one layer of each.

        Edges of the second part keep their length where the first part is long enough, else read the input. Poolings
        beyond `max_poolings` are left out, the last ones first.
        """
        u_head, u_tail = rng.random(2).tolist()
        least, most = max(1, self._min_layers - len(second)), min(len(first), self._max_layers - 1)
        n_head = least + int(u_head * (most - least + 1))
        least, most = max(1, self._min_layers - n_head), min(len(second), self._max_layers - n_head)
        n_tail = least + int(u_tail * (most - least + 1))
        layers = _copy(first[:n_head]) + _copy(second[len(second) - n_tail :])
        shift = n_head - (len(second) - n_tail)
        for layer in layers[n_head:]:
            layer["inputs"] = sorted({max(INPUT, source + shift) for source in layer["inputs"]})
        return self._mended(layers)

    def neighbours(self, genotype: Json) -> Iterator[Json]:
        """Every genotype that one mutation can make, once each."""
        may_pool = _count_poolings(genotype) < self._max_poolings
        for index, layer in enumerate(genotype):
            for field in self._open_fields:
                if field == "pooling" and layer[field] == "none" and not may_pool:
                    continue
                for value in dict.fromkeys(self._others[field][layer[field]]):
                    layers = _copy(genotype)
                    layers[index][field] = value
                    yield layers
        if self._skip:
            removable = set(_removable_edges(genotype))
            for index in range(1, len(genotype)):
                for source in range(INPUT, index):
                    if source not in genotype[index]["inputs"] or (index, source) in removable:
                        layers = _copy(genotype)
                        _toggle(layers[index]["inputs"], source)
                        yield layers
        yield from self._longer(genotype, may_pool=may_pool)
        yield from self._shorter(genotype)

    def decisions(self) -> tuple[int, ...]:
        """The number of layers; for each its fields and, with `skip`, whether it reads each earlier one."""
        return self._decisions.counts

    def skips(self) -> tuple[int | None, ...]:
        """Which decisions are skips, and from where; see `nord_hpc.spaces.conv_decisions`."""
        return self._decisions.skips

    def from_decisions(self, choices: Sequence[int]) -> Json:
        """The point of these choices. Poolings beyond `max_poolings` are left out, the last ones first."""
        return self._mended(self._decisions.layers(choices))

    def _mended(self, layers: list[Json]) -> list[Json]:
        """The layers, changed in place: each is read, and not too many pool."""
        _read_all(layers)
        excess = _count_poolings(layers) - self._max_poolings
        for layer in reversed(layers):
            if excess > 0 and layer["pooling"] != "none":
                layer["pooling"] = "none"
                excess -= 1
        return layers

    def contains(self, genotype: Json) -> bool:
        """Whether `genotype` is a point of this space. Never raises."""
        if not isinstance(genotype, list) or not self._min_layers <= len(genotype) <= self._max_layers:
            return False
        if not all(self._contains_layer(layer, index) for index, layer in enumerate(genotype)):
            return False
        read = {source for layer in genotype for source in layer["inputs"]}
        return _count_poolings(genotype) <= self._max_poolings and read.issuperset(range(len(genotype) - 1))

    def _contains_layer(self, layer: Json, index: int) -> bool:
        if not isinstance(layer, dict) or layer.keys() != KEYS:
            return False
        for field, choices in self._choices.items():
            # By type too: True and 1.0 are equal to 1.
            if type(layer[field]) is not type(choices[0]) or layer[field] not in choices:
                return False
        inputs = layer["inputs"]
        if not isinstance(inputs, list) or not inputs or any(type(source) is not int for source in inputs):
            return False
        if inputs != sorted(set(inputs)) or inputs[0] < INPUT or inputs[-1] >= index:
            return False
        return self._skip or inputs == [index - 1]

    def to_descriptor(self, genotype: Json) -> NeuralDescriptor:
        """The network: an identity as the input, then a short chain for each layer."""
        network = NeuralDescriptor()
        network.add_made_layer("input", IDENTITY)
        ends = {INPUT: "input"}
        for index, layer in enumerate(genotype):
            sources = [ends[source] for source in layer["inputs"]]
            for made in self._chain(*(layer[field] for field in FIELDS)):
                name = f"{index}_{made.kind}"
                network.add_made_layer(name, made, sources)
                sources = [name]
            ends[index] = sources[0]
        return network

    def _chain(self, *fields: Any) -> tuple[Layer, ...]:
        """The descriptor's layers for one layer of a genotype; made once for all networks."""
        chain = self._chains.get(fields)
        if chain is None:
            chain = self._chains[fields] = self._make_chain(dict(zip(FIELDS, fields, strict=True)))
        return chain

    def _make_chain(self, layer: dict[str, Any]) -> tuple[Layer, ...]:
        kernel, batch = layer["kernel"], layer["normalization"] == "batch"
        convolution = {
            "out_channels": layer["channels"],
            "kernel_size": kernel,
            "padding": kernel // 2,
            "bias": not batch,  # batch normalization takes a constant away again
        }
        chain = [Layer("Conv2d", convolution, self._join)]
        if batch:
            chain.append(Layer("BatchNorm2d", {}))
        chain.append(Layer(ACTIVATION_KINDS[layer["activation"]], {}))
        if layer["pooling"] != "none":
            chain.append(Layer(POOLING_KINDS[layer["pooling"]], {"kernel_size": 2}))
        return tuple(chain)

    def size(self) -> int:
        """How many genotypes there are."""
        n_fields = math.prod(len(set(self._choices[field])) for field in FIELDS if field != "pooling")
        n_pooled = len(set(self._pooled))
        total = 0
        for n_layers in range(self._min_layers, self._max_layers + 1):
            if self._may_not_pool:
                most = min(self._max_poolings, n_layers)
                poolings = sum(math.comb(n_layers, k) * n_pooled**k for k in range(most + 1))
            else:
                poolings = n_pooled**n_layers
            total += n_fields**n_layers * poolings * (_count_graphs(n_layers) if self._skip else 1)
        return total

    # Mutations change the layers in place and say whether they could.

    def _change_field(self, layers: list[Json], rng: np.random.Generator) -> bool:
        n_fields = len(self._open_fields)
        if not n_fields:
            return False
        may_pool = _count_poolings(layers) < self._max_poolings
        n_pairs = len(layers) * n_fields
        start = int(rng.random() * n_pairs)
        for step in range(n_pairs):
            index, field_index = divmod((start + step) % n_pairs, n_fields)
            layer, field = layers[index], self._open_fields[field_index]
            if field != "pooling" or may_pool or layer[field] != "none":
                layer[field] = _pick(self._others[field][layer[field]], rng.random())
                return True
        return False

    def _change_edge(self, layers: list[Json], rng: np.random.Generator) -> bool:
        """Add an edge or remove one, with equal chances where both can be done, so that graphs do not fill up."""
        n_later = len(layers) - 1
        if not self._skip or not n_later:
            return False
        removable = _removable_edges(layers)
        if not removable or rng.random() < 0.5:
            start = int(rng.random() * n_later)
            for step in range(n_later):
                index = 1 + (start + step) % n_later
                inputs = layers[index]["inputs"]
                missing = [source for source in range(INPUT, index) if source not in inputs]
                if missing:
                    _toggle(inputs, _pick(missing, rng.random()))
                    return True
        if not removable:
            return False
        index, source = _pick(removable, rng.random())
        _toggle(layers[index]["inputs"], source)
        return True

    def _add_layer(self, layers: list[Json], rng: np.random.Generator) -> bool:
        if len(layers) >= self._max_layers:
            return False
        u_at, *u_fields = rng.random(1 + len(FIELDS)).tolist()
        fields = {field: _pick(self._choices[field], u) for field, u in zip(FIELDS, u_fields, strict=True)}
        if _count_poolings(layers) >= self._max_poolings:
            fields["pooling"] = "none"
        _insert(layers, int(u_at * (len(layers) + 1)), fields)
        return True

    def _remove_layer(self, layers: list[Json], rng: np.random.Generator) -> bool:
        if len(layers) <= self._min_layers:
            return False
        _remove(layers, int(rng.random() * len(layers)))
        return True

    def _longer(self, genotype: list[Json], *, may_pool: bool) -> Iterator[Json]:
        if len(genotype) >= self._max_layers:
            return
        seen = set()
        for at in range(len(genotype) + 1):
            for fields in self._all_fields(may_pool=may_pool):
                layers = _copy(genotype)
                _insert(layers, at, fields)
                # A layer beside an equal one is the same genotype before it and after it.
                if (text := json.dumps(layers)) not in seen:
                    seen.add(text)
                    yield layers

    def _shorter(self, genotype: list[Json]) -> Iterator[Json]:
        if len(genotype) <= self._min_layers:
            return
        seen = set()
        for at in range(len(genotype)):
            layers = _copy(genotype)
            _remove(layers, at)
            if (text := json.dumps(layers)) not in seen:
                seen.add(text)
                yield layers

    def _all_fields(self, *, may_pool: bool) -> Iterator[dict[str, Json]]:
        combinations: list[dict[str, Json]] = [{}]
        for field in FIELDS:
            choices = ("none",) if field == "pooling" and not may_pool else tuple(dict.fromkeys(self._choices[field]))
            combinations = [{**fields, field: choice} for fields in combinations for choice in choices]
        yield from combinations


def _pick(choices: tuple[Json, ...] | list[Json], u: float) -> Json:
    """One of the choices, by a number in 0 .. 1, 1 excluded."""
    return choices[int(u * len(choices))]


def _copy(layers: list[Json]) -> list[Json]:
    return [{**layer, "inputs": layer["inputs"][:]} for layer in layers]


def _count_poolings(layers: list[Json]) -> int:
    return sum(layer["pooling"] != "none" for layer in layers)


def _toggle(inputs: list[int], source: int) -> None:
    if source in inputs:
        inputs.remove(source)
    else:
        inputs.append(source)
        inputs.sort()


def _read_all(layers: list[Json]) -> None:
    """Let each layer that nobody reads be read by the one after the next (the next stands beside it), or the last."""
    last = len(layers) - 1
    read = {source for layer in layers for source in layer["inputs"]}
    for index in range(last):
        if index not in read:
            _toggle(layers[min(index + 2, last)]["inputs"], index)


def _removable_edges(layers: list[Json]) -> list[tuple[int, int]]:
    """The (layer, source) pairs without which the layer still reads something, and something still reads the source."""
    n_readers = [0] * (len(layers) + 1)  # the last is the input's, index -1
    for layer in layers:
        for source in layer["inputs"]:
            n_readers[source] += 1
    return [
        (index, source)
        for index, layer in enumerate(layers)
        if len(layer["inputs"]) > 1
        for source in layer["inputs"]
        if source == INPUT or n_readers[source] > 1
    ]


def _insert(layers: list[Json], at: int, fields: dict[str, Json]) -> None:
    """Put a layer between the layers `at` - 1 and `at`, in place of the edge between them where there is one."""
    for layer in layers[at:]:
        layer["inputs"] = [source + (source >= at) for source in layer["inputs"]]
    if at < len(layers):
        layers[at]["inputs"] = sorted({*layers[at]["inputs"], at} - {at - 1})
    layers.insert(at, {**fields, "inputs": [at - 1]})


def _remove(layers: list[Json], at: int) -> None:
    """Take a layer out; those that read it read its inputs instead."""
    removed = layers.pop(at)["inputs"]
    for layer in layers[at:]:
        inputs = layer["inputs"]
        if at in inputs:
            inputs = sorted({*inputs, *removed} - {at})
        layer["inputs"] = [source - (source > at) for source in inputs]
    _read_all(layers)


def _count_graphs(n_layers: int) -> int:
    """Ways to choose the inputs of all layers, each but the last being read.

    Counted layer by layer over the number of layers still unread: the next one reads k of these, and any of the
    others, or of all that are not unread (the input included) when k is 0 at least one.
    """
    ways = {1: 1}  # after the first layer: itself unread
    for n_earlier in range(1, n_layers):
        following: dict[int, int] = {}
        for unread, count in ways.items():
            n_read = n_earlier - unread + 1
            for k in range(unread + 1):
                graphs = math.comb(unread, k) * (2**n_read - (k == 0))
                following[unread - k + 1] = following.get(unread - k + 1, 0) + count * graphs
        ways = following
    return ways[1]
