"""Hyperparameters as a search space, for a fixed network or as a part of `joint`; training is left to others."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from nord_hpc import job as jobs
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput
from nord_hpc.explanations import explain
from nord_hpc.interfaces import SearchSpace
from nord_hpc.job import Job, Named, Settings
from nord_hpc.spaces.parameters import Parameter, in_order, is_active
from nord_hpc.trial import Json

GANG, SHARDS = "resources.gang", "resources.shards"
BATCH_SIZE, LEARNING_RATE, SCALE_LR = "training.batch_size", "training.optimizer.lr", "training.scale_lr"
ABSENT = -1.0
"""What stands in an encoding for a parameter that does not exist at a point; present ones are 0 to 1."""


class ParameterSettings(Settings):
    """Which hyperparameters there are.

    A parameter whose name has dots sets this field of the job for the trial: one of `training`, such as
    training.optimizer.lr, or resources.gang or resources.shards. A name without dots is free: it is for evaluators that
    read it from the trial's settings.

    Attributes:
        parameters: by name; each is `float` or `int` with `low`, `high` and `log`, or `categorical` or `ordinal` with
            `choices`, and may depend on others by `when: {name: value or list of values}`.
        linear_scaling: training.batch_size and training.optimizer.lr are those of one shard, and both grow with the
            number of shards, which is that of resources.gang (Goyal et al. 2017, Egele et al. 2021).
    """

    parameters: dict[str, Parameter] = Field(min_length=1)
    linear_scaling: bool = False

    @field_validator("parameters")
    @classmethod
    def _names_and_conditions(cls, parameters: dict[str, Parameter]) -> dict[str, Parameter]:
        for name in parameters:
            _check_name(name)
        in_order(parameters)
        return parameters

    @model_validator(mode="after")
    def _scales(self) -> ParameterSettings:
        if self.linear_scaling:
            missing = [name for name in (GANG, BATCH_SIZE, LEARNING_RATE) if name not in self.parameters]
            if missing:
                raise ValueError(
                    f"linear_scaling grows the batch and the learning rate with the gang, and {', '.join(missing)} "
                    f"is no parameter; add it (with one choice, where it is fixed), or set linear_scaling to false"
                )
            for name in (SHARDS, SCALE_LR):
                if name in self.parameters:
                    raise ValueError(f"linear_scaling sets {name} itself; remove it from parameters")
        return self


class FixedNetwork(Settings):
    """A network as a point of another space.

    Attributes:
        space: name and options, as in a job.
        genotype: a point of it.
    """

    space: Named
    genotype: Any

    @field_validator("space")
    @classmethod
    def _with_defaults(cls, space: Named) -> Named:
        return resolved(space)


class Hyperparameters:
    """Points are mappings of name to value, of those parameters alone that exist there.

    The network is the same for all: that of `descriptor` or `network`; with neither it is what the builder adds to an
    empty one, a linear classifier. Evaluators that train nothing need none.

    Where resources.gang is a parameter and resources.shards is not, the shards are as many as the gang: for one number
    of shards the result of a training is the same on any gang.

    A mutation changes one parameter, numbers by a step of a fifth of their range on average, ordinal ones by one place.
    Parameters that come into existence by it are drawn.
    """

    class Options(ParameterSettings):
        """The hyperparameters, and the network that is trained with them.

        Attributes:
            parameters: by name; each is `float` or `int` with `low`, `high` and `log`, or `categorical` or `ordinal`
                with `choices`, and may depend on others by `when: {name: value or list of values}`. Those with a
                `default` have it at the point that is made for a given network.
            linear_scaling: training.batch_size and training.optimizer.lr are those of one shard, and both grow with
                the number of shards, which is that of resources.gang.
            descriptor: file of the network's descriptor as JSON, relative to the job file.
            network: the network as a point of another space; a file.py:Class in it is looked for from the working
                directory.
        """

        descriptor: Path | None = None
        network: FixedNetwork | None = None

        @model_validator(mode="after")
        def _one_network(self) -> Hyperparameters.Options:
            if self.descriptor is not None and self.network is not None:
                raise ValueError("descriptor and network are both set; set one of them")
            return self

    def __new__(cls, options: Options) -> Hyperparameters:
        """A space without floats can list what it holds, and has more capabilities."""
        finite = all(parameter.n_values is not None for parameter in options.parameters.values())
        return super().__new__(FiniteHyperparameters if finite else cls)

    def __init__(self, options: Options) -> None:
        """
        Raises:
            ValueError: there is no such network.
        """
        self._names = in_order(options.parameters)
        self._parameters: dict[str, Parameter] = {name: options.parameters[name] for name in self._names}
        self._linear_scaling = options.linear_scaling
        self._descriptor = _network(options)

    def sample(self, rng: np.random.Generator) -> Json:
        return self._completed({}, rng.random(len(self._names)).tolist())

    def mutate(self, genotype: Json, rng: np.random.Generator) -> Json:
        movable = [name for name in self._names if name in genotype and self._parameters[name].n_values != 1]
        if not movable:
            return dict(genotype)
        name = movable[int(rng.random() * len(movable))]
        moved = {**genotype, name: self._parameters[name].step(genotype[name], rng)}
        return self._completed(moved, rng.random(len(self._names)).tolist())

    def crossover(self, first: Json, second: Json, rng: np.random.Generator) -> Json:
        """Each parameter from one of both, with equal chances; drawn where its conditions hold in neither."""
        draws = rng.random(2 * len(self._names)).tolist()
        child: dict[str, Json] = {}
        for index, (name, parameter) in enumerate(self._parameters.items()):
            if not is_active(parameter, child):
                continue
            sources = [parent for parent in (first, second) if name in parent]
            u_source, u_value = draws[2 * index : 2 * index + 2]
            child[name] = sources[int(u_source * len(sources))][name] if sources else parameter.draw(u_value)
        return child

    def contains(self, genotype: Json) -> bool:
        """Whether `genotype` is a point of this space. Never raises."""
        if not isinstance(genotype, dict) or not genotype.keys() <= self._parameters.keys():
            return False
        point: dict[str, Json] = {}
        for name, parameter in self._parameters.items():
            if (name in genotype) != is_active(parameter, point):
                return False
            if name in genotype:
                if not parameter.holds(genotype[name]):
                    return False
                point[name] = genotype[name]
        return True

    def to_descriptor(self, genotype: Json) -> NeuralDescriptor:
        return self._descriptor

    def settings(self, genotype: Json) -> dict[str, Json]:
        """The job fields that this point sets, by dotted name, and the values of free names."""
        found = {name: genotype[name] for name in self._names if name in genotype}
        if GANG in found and SHARDS not in self._parameters:
            found[SHARDS] = found[GANG]
        if self._linear_scaling and GANG in found:
            found[SCALE_LR] = "linear"
            if BATCH_SIZE in found:
                found[BATCH_SIZE] *= found[SHARDS]
        return found

    def encode(self, genotype: Json) -> list[float]:
        """Numbers from 0 to 1, one for each parameter, for categorical ones one for each choice; -1 where absent."""
        code: list[float] = []
        for name, parameter in self._parameters.items():
            if name in genotype:
                code += parameter.code(genotype[name])
            else:
                code += [ABSENT] * len(parameter.code(parameter.usual))
        return code

    def size(self) -> int | None:
        """How many points there are; None with parameters that are not whole numbers."""
        return None

    def parameters(self) -> dict[str, Json]:
        """The options of each as in the job, by name; each stands after those that its `when` names."""
        return {name: parameter.model_dump(mode="json") for name, parameter in self._parameters.items()}

    def usual(self) -> Json:
        """The point of the defaults: for each parameter its own, the first of several categories, or the middle."""
        point: dict[str, Json] = {}
        for name, parameter in self._parameters.items():
            if is_active(parameter, point):
                point[name] = parameter.usual
        return point

    def _completed(self, values: dict[str, Json], draws: Sequence[float]) -> dict[str, Json]:
        """The point with these values where they exist in it; others that exist are drawn."""
        point: dict[str, Json] = {}
        for (name, parameter), u in zip(self._parameters.items(), draws, strict=True):
            if is_active(parameter, point):
                point[name] = values[name] if name in values else parameter.draw(u)
        return point


class FiniteHyperparameters(Hyperparameters):
    """Hyperparameters without floats: points can be counted and listed. `Hyperparameters` makes it where it fits."""

    def neighbours(self, genotype: Json) -> Iterator[Json]:
        """Every point with one parameter at one step, and all values of those that come into existence by it."""
        for name in self._names:
            if name in genotype:
                for value in self._parameters[name].near(genotype[name]):
                    yield from self._completions({**genotype, name: value})

    def size(self) -> int | None:
        """How many points there are."""
        return self._count(0, {}, 1)

    def decisions(self) -> tuple[int, ...]:
        """The number of values of each parameter. Those that do not exist at a point are decided in vain."""
        return tuple(self._n_values(name) for name in self._names)

    def from_decisions(self, choices: Sequence[int]) -> Json:
        point: dict[str, Json] = {}
        for (name, parameter), choice in zip(self._parameters.items(), choices, strict=True):
            if is_active(parameter, point):
                point[name] = parameter.value(choice)
        return point

    def _completions(self, values: dict[str, Json]) -> Iterator[Json]:
        """All points with these values where they exist."""

        def extended(index: int, point: dict[str, Json]) -> Iterator[Json]:
            while index < len(self._names) and not is_active(self._parameters[self._names[index]], point):
                index += 1
            if index == len(self._names):
                yield dict(point)
                return
            name = self._names[index]
            parameter = self._parameters[name]
            if name in values:
                yield from extended(index + 1, {**point, name: values[name]})
                return
            for choice in range(self._n_values(name)):
                yield from extended(index + 1, {**point, name: parameter.value(choice)})

        return extended(0, {})

    def _n_values(self, name: str) -> int:
        n_values = self._parameters[name].n_values
        assert n_values is not None
        return n_values

    def _count(self, index: int, point: dict[str, Json], factor: int) -> int:
        """The points that go on from `point`, where those before `index` are decided, times a factor."""
        for name in itertools.islice(self._names, index, None):
            index += 1
            parameter = self._parameters[name]
            n_values = self._n_values(name)
            if not is_active(parameter, point):
                continue
            # Values that no condition names are alike, so one stands for all of them.
            named = [value for other in self._parameters.values() for value in other.when.get(name, ())]
            if not named:
                factor *= n_values
                continue
            distinct = list({json.dumps(value): value for value in named}.values())
            counts = [self._count(index, {**point, name: value}, factor) for value in distinct]
            if len(distinct) < n_values:
                counts.append((n_values - len(distinct)) * self._count(index, {**point, name: _OTHER}, factor))
            return sum(counts)
        return factor


_OTHER = object()


def _network(options: Hyperparameters.Options) -> NeuralDescriptor:
    if options.descriptor is not None:
        try:
            return NeuralDescriptor.from_json(json.loads(options.descriptor.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"space.descriptor: {options.descriptor} is no descriptor as JSON: {error}") from error
    if options.network is not None:
        space = make_space(options.network.space)
        if not space.contains(options.network.genotype):
            raise ValueError(f"space.network: genotype is no point of the space {options.network.space.name}")
        return space.to_descriptor(options.network.genotype)
    empty = NeuralDescriptor()
    empty.add_layer("Identity", name="input")
    return empty


def resolved(section: Named) -> Named:
    """The section of a space inside of another, with the defaults of its class filled in.

    Raises:
        ValueError: there is no such space, or it has no such options.
    """
    _, options = _class_and_options(section)
    return Named.model_validate({"name": section.name, **options.model_dump(mode="json")})


def make_space(section: Named) -> SearchSpace:
    """The space that a section inside of another space's options describes. Raises as `resolved` does."""
    cls, options = _class_and_options(section)
    space: SearchSpace = cls(options)
    return space


def _class_and_options(section: Named) -> tuple[Any, BaseModel]:
    try:
        return jobs.options_of("space", section, folder=Path())
    except BadInput as error:
        raise ValueError(f"name: {error}") from error
    except ValidationError as error:
        raise ValueError(explain(error)) from error


def _check_name(name: str) -> None:
    """Refuse a job field that does not exist, or that a trial cannot set."""
    parts = name.split(".")
    if len(parts) == 1:
        return
    if parts[0] != "training" and name not in (GANG, SHARDS):
        raise ValueError(f"{name}: a trial can set fields of training, {GANG} and {SHARDS}; other names have no dots")
    model: Any = Job
    for depth, part in enumerate(parts):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise ValueError(f"{name}: {'.'.join(parts[:depth])} has no fields")
        if part not in model.model_fields:
            if model.model_config.get("extra") == "allow":
                return
            close = difflib.get_close_matches(part, model.model_fields, n=1)
            hint = f"; did you mean {'.'.join([*parts[:depth], close[0]])}?" if close else ""
            raise ValueError(f"{name} is no field of a job{hint}")
        annotation = model.model_fields[part].annotation
        model = next((arg for arg in get_args(annotation) if isinstance(arg, type)), annotation)
