"""The kinds of a hyperparameter: what values each takes, and its operators; how they combine is left to the space."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from nord_hpc.job import Settings
from nord_hpc.trial import Json

Scalar = bool | int | float | str | None

LOCAL_STEP = 0.2
"""Standard deviation of a mutation of a number, as a share of its range (of the range's logarithm with `log`)."""


def same(first: Json, second: Json) -> bool:
    """Equal in type, too: True and 1.0 are equal to 1."""
    return type(first) is type(second) and bool(first == second)


class _Parameter(Settings):
    """What all kinds share.

    Attributes:
        when: the parameter exists only where each of these others exists and has one of the values listed.
    """

    when: dict[str, tuple[Scalar, ...]] = Field(default_factory=dict)

    @field_validator("when", mode="before", json_schema_input_type=dict[str, tuple[Scalar, ...] | Scalar])
    @classmethod
    def _lists(cls, when: Any) -> Any:
        """A single value may stand for a list of it."""
        if not isinstance(when, dict):
            return when
        return {name: values if isinstance(values, list | tuple) else (values,) for name, values in when.items()}

    @field_validator("when")
    @classmethod
    def _not_empty(cls, when: dict[str, tuple[Scalar, ...]]) -> dict[str, tuple[Scalar, ...]]:
        for name, values in when.items():
            if not values:
                raise ValueError(f"lists no value of {name!r}, so the parameter never exists; list at least one")
        return when


class _Number(_Parameter):
    """A number between two bounds, both included.

    Attributes:
        log: the logarithm is uniform, and steps are relative; the bounds are then above 0.
        default: of a point that is made for a given network; the middle of the range where None.
    """

    log: bool = False

    def _check_bounds(self, low: float, high: float, default: float | None) -> None:
        if low > high:
            raise ValueError(f"low {low} is above high {high}; set low to {high} or less")
        if self.log and low <= 0:
            raise ValueError(f"low {low} has no logarithm; set low above 0, or log to false")
        if default is not None and not low <= default <= high:
            raise ValueError(f"default {default} is not within {low} .. {high}")

    def _unit(self, value: float, low: float, high: float) -> float:
        """Where a value lies in its range, 0 to 1."""
        if low == high:
            return 0.5
        if self.log:
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return (value - low) / (high - low)

    def _at(self, unit: float, low: float, high: float) -> float:
        """The reverse of `_unit`, never outside of the bounds."""
        if self.log:
            value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
        else:
            value = low + unit * (high - low)
        return min(max(value, low), high)


class FloatParameter(_Number):
    """A number with a fraction."""

    type: Literal["float"]
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    default: float | None = None

    @model_validator(mode="after")
    def _bounds(self) -> FloatParameter:
        self._check_bounds(self.low, self.high, self.default)
        return self

    @property
    def n_values(self) -> int | None:
        """None: too many to count."""
        return 1 if self.low == self.high else None

    def value(self, index: int) -> Json:
        return self.low

    def draw(self, u: float) -> Json:
        """A value, by a number in 0 .. 1, 1 excluded."""
        return self._at(u, self.low, self.high)

    def step(self, value: Json, rng: np.random.Generator) -> Json:
        """Another value nearby; the same where there is no other."""
        unit = self._unit(value, self.low, self.high)
        while self.low < self.high:
            moved = self._at(_reflected(unit + LOCAL_STEP * rng.standard_normal()), self.low, self.high)
            if moved != value:
                return moved
        return value

    def near(self, value: Json) -> list[Json]:
        """The values at one step, of a parameter that has finitely many."""
        return []

    def holds(self, value: Json) -> bool:
        return type(value) is float and self.low <= value <= self.high

    def code(self, value: Json) -> list[float]:
        """Numbers of 0 to 1 for surrogate models."""
        return [self._unit(value, self.low, self.high)]

    @property
    def usual(self) -> Json:
        return self.draw(0.5) if self.default is None else self.default


class IntParameter(_Number):
    """A whole number."""

    type: Literal["int"]
    low: int
    high: int
    default: int | None = None

    @model_validator(mode="after")
    def _bounds(self) -> IntParameter:
        self._check_bounds(self.low, self.high, self.default)
        return self

    @property
    def n_values(self) -> int | None:
        return self.high - self.low + 1

    def value(self, index: int) -> Json:
        return self.low + index

    def draw(self, u: float) -> Json:
        """A value, by a number in 0 .. 1, 1 excluded; each takes its share of the range, rounded."""
        if not self.log:
            return self.low + int(u * (self.high - self.low + 1))
        return self._clipped(self._at(u, self.low - 0.5, self.high + 0.5))

    def step(self, value: Json, rng: np.random.Generator) -> Json:
        """Another value nearby; the same where there is no other."""
        if self.low == self.high:
            return value
        unit = self._unit(value, self.low, self.high)
        moved = self._clipped(self._at(_reflected(unit + LOCAL_STEP * rng.standard_normal()), self.low, self.high))
        near = self.near(value)
        return moved if moved != value else near[int(rng.random() * len(near))]

    def near(self, value: Json) -> list[Json]:
        return [near for near in (value - 1, value + 1) if self.low <= near <= self.high]

    def holds(self, value: Json) -> bool:
        return type(value) is int and self.low <= value <= self.high

    def code(self, value: Json) -> list[float]:
        return [self._unit(value, self.low, self.high)]

    @property
    def usual(self) -> Json:
        return self._clipped(self._at(0.5, self.low, self.high)) if self.default is None else self.default

    def _clipped(self, value: float) -> int:
        return min(max(round(value), self.low), self.high)


class _Choices(_Parameter):
    """One of a list of values.

    Attributes:
        default: of a point that is made for a given network.
    """

    choices: tuple[Scalar, ...] = Field(min_length=1)
    default: Scalar = None

    @field_validator("choices")
    @classmethod
    def _distinct(cls, choices: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
        for index, choice in enumerate(choices):
            if choice in choices[:index]:
                raise ValueError(f"{choice!r} is equal to an earlier choice; list each once")
        return choices

    @model_validator(mode="after")
    def _default_is_one(self) -> _Choices:
        if self.default is not None and not self.holds(self.default):
            raise ValueError(f"default {self.default!r} is not one of the choices")
        return self

    @property
    def n_values(self) -> int | None:
        return len(self.choices)

    def value(self, index: int) -> Json:
        return self.choices[index]

    def draw(self, u: float) -> Json:
        """A value, by a number in 0 .. 1, 1 excluded."""
        return self.choices[int(u * len(self.choices))]

    def step(self, value: Json, rng: np.random.Generator) -> Json:
        """Another value, at one step; the same where there is no other."""
        near = self.near(value)
        return near[int(rng.random() * len(near))] if near else value

    def near(self, value: Json) -> list[Json]:
        raise NotImplementedError

    def holds(self, value: Json) -> bool:
        return any(same(value, choice) for choice in self.choices)

    def _index(self, value: Json) -> int:
        return next(index for index, choice in enumerate(self.choices) if same(value, choice))


class CategoricalParameter(_Choices):
    """One of several values without an order."""

    type: Literal["categorical"]

    def near(self, value: Json) -> list[Json]:
        return [choice for choice in self.choices if not same(choice, value)]

    def code(self, value: Json) -> list[float]:
        return [float(same(choice, value)) for choice in self.choices]

    @property
    def usual(self) -> Json:
        return self.choices[0] if self.default is None else self.default


class OrdinalParameter(_Choices):
    """One of several values in an order: a step leads to the one before or after."""

    type: Literal["ordinal"]

    def near(self, value: Json) -> list[Json]:
        at = self._index(value)
        return [self.choices[near] for near in (at - 1, at + 1) if 0 <= near < len(self.choices)]

    def code(self, value: Json) -> list[float]:
        last = len(self.choices) - 1
        return [self._index(value) / last if last else 0.5]

    @property
    def usual(self) -> Json:
        return self.choices[(len(self.choices) - 1) // 2] if self.default is None else self.default


Parameter = Annotated[
    FloatParameter | IntParameter | CategoricalParameter | OrdinalParameter, Field(discriminator="type")
]


def in_order(parameters: dict[str, Parameter]) -> list[str]:
    """The names, each after those that its `when` names, else alphabetical: a job read back gives the same order.

    Raises:
        ValueError: one names a parameter that does not exist, a value that it never has, or depends on itself.
    """
    for name, parameter in parameters.items():
        for other, values in parameter.when.items():
            if other not in parameters:
                raise ValueError(f"{name}: when names {other!r}, which is no parameter")
            for value in values:
                if not parameters[other].holds(value):
                    raise ValueError(f"{name}: when waits for {other!r} to be {value!r}, which it never is")
    ordered: list[str] = []
    waiting = sorted(parameters)
    while waiting:
        ready = next((name for name in waiting if all(other in ordered for other in parameters[name].when)), None)
        if ready is None:
            raise ValueError(
                f"the when of {', '.join(waiting)} go round in a circle; one must exist without the others"
            )
        ordered.append(ready)
        waiting.remove(ready)
    return ordered


def is_active(parameter: Parameter, point: dict[str, Json]) -> bool:
    """Whether a parameter exists where those before it have the values of `point`."""
    return all(
        other in point and any(same(point[other], value) for value in values)
        for other, values in parameter.when.items()
    )


def _reflected(unit: float) -> float:
    """A number thrown back into 0 .. 1 at both ends, as a ball between walls."""
    unit = abs(unit) % 2.0
    return 2.0 - unit if unit > 1.0 else unit
