"""BenchmarkEvaluator: descriptors looked up in NAS-Bench-101 from a script, without a job."""

from __future__ import annotations

from pathlib import Path

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput, Infeasible
from nord_hpc.evaluators.nasbench101.evaluator import Repeat, cell_of, chosen_run
from nord_hpc.evaluators.nasbench101.table import Run, open_table
from nord_hpc.nasbench101.spec import OPERATIONS

_ACCURACIES = tuple(field for field in Run._fields if field.endswith("_accuracy"))


class BenchmarkEvaluator:
    """Accuracies and training times of cells, from a record file of NAS-Bench-101.

    A descriptor goes from a layer of kind "input" to one of kind "output"; the kinds between are those of
    `get_available_ops`, without parameters.

    Args:
        path: of the record file; None for the environment variable NORD_HPC_NASBENCH101.
        epochs: of the trainings; None for the largest budget of the file.
        repeat: `mean` averages over a cell's trainings, `sampled` takes one, by `seed`.

    Raises:
        BadInput: no such file, or it has no trainings of so many epochs.
    """

    def __init__(
        self, path: Path | str | None = None, *, epochs: int | None = None, repeat: Repeat = "mean", seed: int = 0
    ) -> None:
        self.table = open_table(path)
        self._epochs = self.table.budgets[-1] if epochs is None else epochs
        self._repeat: Repeat = repeat
        self._seed = seed
        if self._epochs not in self.table.budgets:
            choices = ", ".join(map(str, self.table.budgets))
            raise BadInput(f"epochs {epochs} are no budget of {self.table.path}; set one of {choices}")

    def get_available_ops(self) -> list[str]:
        """The kinds that layers between "input" and "output" may be."""
        return list(OPERATIONS)

    def has_been_evaluated(self, descriptor: NeuralDescriptor) -> bool:
        """Whether the table has the network of this descriptor, so that `descriptor_evaluate` can answer."""
        try:
            return bool(self.table.runs(cell_of(descriptor, self.table), self._epochs))
        except Infeasible:
            return False

    def descriptor_evaluate(
        self, descriptor: NeuralDescriptor, acc: str = "validation_accuracy"
    ) -> tuple[float, float]:
        """The accuracy (0 to 1) of a descriptor's network, and the seconds that its training took.

        Args:
            acc: "validation_accuracy", "test_accuracy" or "train_accuracy".

        Raises:
            Infeasible: the descriptor is no cell of the benchmark, or the table does not have it.
        """
        if acc not in _ACCURACIES:
            raise ValueError(f"acc {acc!r} is not in the table; set one of {', '.join(_ACCURACIES)}")
        cell = cell_of(descriptor, self.table)
        runs = self.table.runs(cell, self._epochs)
        if not runs:
            module_hash = self.table.module_hash(cell)
            raise Infeasible(f"cell {module_hash} has no training of {self._epochs} epochs in the table")
        run = chosen_run(runs, repeat=self._repeat, seed=self._seed)
        return getattr(run, acc), run.training_seconds
