"""Configs: what scripts know of each data set, one frozen record each; loading and training are left to others."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from nord_hpc.datasets.dataset import Task
from nord_hpc.errors import BadInput
from nord_hpc.scripting.dense_parts import get_dense_batch_net, get_dense_net
from nord_hpc.scripting.loading import DataLoad, NamedData
from nord_hpc.scripting.neural_net import Dense
from nord_hpc.scripting.sizes import KeepDimensions

Criterion = str | type | Callable[..., Any]
MetricChoice = str | Callable[..., Any]


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """One data set.

    Attributes:
        num_classes: width of a network's output.
        input_shape: of one sample without channels.
        channels: of the samples.
        criterion: what is trained with; see `nord_hpc.training.losses.loss_sum`.
        metrics: what is measured; see `nord_hpc.training.metrics.chosen`.
        dimension_keeping: see `nord_hpc.scripting.sizes`.
        data_load: what gives the data.
        dense_part: see `nord_hpc.scripting.neural_net.NeuralNet`.
        task: None to conclude it from the targets.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    channels: int
    criterion: Criterion
    metrics: tuple[MetricChoice, ...]
    dimension_keeping: KeepDimensions
    data_load: DataLoad
    dense_part: Dense
    task: Task | None = None


def known_records() -> dict[str, DatasetRecord]:
    """The data sets that are there from the start."""

    def record(
        name: str, *, num_classes: int, shape: tuple[int, ...], channels: int, dense: Any, **options: Any
    ) -> Any:
        return DatasetRecord(
            name=name,
            num_classes=num_classes,
            input_shape=shape,
            channels=channels,
            criterion="cross_entropy",
            metrics=("accuracy",),
            dimension_keeping=None,
            data_load=NamedData(name, options=options),
            dense_part=dense,
            task="classification",
        )

    softmax = nn.LogSoftmax(dim=1)
    records = [
        record("cifar10", num_classes=10, shape=(32, 32), channels=3, dense=get_dense_batch_net(3, 10, softmax)),
        record("fashion_mnist", num_classes=10, shape=(28, 28), channels=1, dense=get_dense_net(2, 10, softmax)),
        record("digits", num_classes=10, shape=(8, 8), channels=1, dense=get_dense_net(1, 10, softmax)),
        record(
            "activity_recognition",
            num_classes=7,
            shape=(52,),
            channels=3,
            dense=get_dense_net(3, 7, softmax),
            differentiate=True,
        ),
    ]
    return {record.name: record for record in records}


_RECORDS = known_records()
"""Of this process: what a script adds with one `Configs()` is there for every other one, and for its evaluators."""


class Configs:
    """The table of data sets, as fields that go from a data set's name to one of its properties.

    Setting an item of a field replaces that data set's record, and changes nothing for any other. "-" and "_" are one
    in names.

    Args:
        records: a table of one's own; None for that of this process.
    """

    def __init__(self, records: dict[str, DatasetRecord] | None = None) -> None:
        self.records = _RECORDS if records is None else records
        self.NUM_CLASSES: Field = Field(self, "num_classes")
        self.INPUT_SHAPE: Field = Field(self, "input_shape")
        self.CHANNELS: Field = Field(self, "channels")
        self.CRITERION: Field = Field(self, "criterion")
        self.METRIC: Field = Field(self, "metrics")
        self.DIMENSION_KEEPING: Field = Field(self, "dimension_keeping")
        self.DATA_LOAD: Field = Field(self, "data_load")
        self.DENSE_PART: Field = Field(self, "dense_part")

    def record(self, name: str) -> DatasetRecord:
        """All that is known of a data set.

        Raises:
            BadInput: it was never added.
        """
        found = self.records.get(name) or self.records.get(name.replace("-", "_"))
        if found is None:
            close = difflib.get_close_matches(name, self.records, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise BadInput(f"dataset {name!r} is not known: {hint}add it, or set one of {', '.join(self.records)}")
        return found

    def print_datasets(self) -> None:
        """Print the names of the data sets."""
        print(list(self.records))

    def add_dataset(
        self,
        name: str,
        num_classes: int,
        input_shape: Sequence[int],
        channels: int,
        criterion: Criterion,
        metrics: MetricChoice | Sequence[MetricChoice],
        dimension_keeping: KeepDimensions,
        data_load: DataLoad,
        dense_part: Dense,
        *,
        task: Task | None = None,
    ) -> None:
        """Add a data set, or replace the one of that name; see `DatasetRecord`.

        Raises:
            BadInput: a value is out of range.
        """
        if num_classes < 1 or channels < 1 or any(size < 1 for size in input_shape):
            raise BadInput(f"dataset {name}: num_classes, channels and the sizes of input_shape are 1 or more")
        self.records[name] = DatasetRecord(
            name=name,
            num_classes=num_classes,
            input_shape=tuple(input_shape),
            channels=channels,
            criterion=criterion,
            metrics=as_metrics(metrics),
            dimension_keeping=dimension_keeping,
            data_load=data_load,
            dense_part=dense_part,
            task=task,
        )

    def add_classification_dataset(
        self, name: str, num_classes: int, input_shape: Sequence[int], channels: int, data_load: DataLoad
    ) -> None:
        """Add a data set with class labels: cross entropy, accuracy, and a dense part of three normalized layers."""
        dense_part = get_dense_batch_net(3, num_classes, nn.LogSoftmax(dim=1))
        self.add_dataset(
            name,
            num_classes,
            input_shape,
            channels,
            "cross_entropy",
            ("accuracy",),
            None,
            data_load,
            dense_part,
            task="classification",
        )

    def add_regression_dataset(
        self, name: str, num_classes: int, input_shape: Sequence[int], channels: int, data_load: DataLoad
    ) -> None:
        """Add a data set of `num_classes` numbers to predict: squared error, and that dense part without softmax."""
        self.add_dataset(
            name,
            num_classes,
            input_shape,
            channels,
            "mean_squared_error",
            ("mean_squared_error", "mean_absolute_error"),
            None,
            data_load,
            get_dense_batch_net(3, num_classes),
            task="regression",
        )


class Field(Mapping[str, Any]):
    """One property of all data sets of a table, by name."""

    def __init__(self, configs: Configs, attribute: str) -> None:
        self._configs = configs
        self._attribute = attribute

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self._configs.record(name), self._attribute)
        except BadInput as error:
            raise KeyError(str(error)) from error

    def __setitem__(self, name: str, value: Any) -> None:
        record = self._configs.record(name)
        if self._attribute == "metrics":
            value = as_metrics(value)
        if self._attribute == "input_shape":
            value = tuple(value)
        self._configs.records[record.name] = dataclasses.replace(record, **{self._attribute: value})

    def __iter__(self) -> Iterator[str]:
        return iter(self._configs.records)

    def __len__(self) -> int:
        return len(self._configs.records)

    def __repr__(self) -> str:
        return repr(dict(self))


def as_metrics(given: MetricChoice | Sequence[MetricChoice]) -> tuple[MetricChoice, ...]:
    """One metric or several, as a tuple."""
    return (given,) if isinstance(given, str) or callable(given) else tuple(given)
