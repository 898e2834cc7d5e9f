"""Looks a descriptor up in NAS-Bench-101, and then the best of its chains of two operations.

Usage: python nord_nasbench101.py [RECORD_FILE], or set NORD_HPC_NASBENCH101 to the record file.
"""

from __future__ import annotations

import sys
from itertools import product

from nord_hpc.errors import NordError
from nord_hpc.neural_nets import BenchmarkEvaluator, NeuralDescriptor


def chain(*operations: str) -> NeuralDescriptor:
    """A cell of operations one after the other, each of which also feeds the output."""
    d = NeuralDescriptor()
    d.add_layer("input", None, "in")
    for number, operation in enumerate(operations, 1):
        d.add_layer_sequential(operation, None, f"layer_{number}")
    d.add_layer_sequential("output", None, "out")
    for number in range(1, len(operations)):
        d.connect_layers(f"layer_{number}", "out")
    return d


def show(evaluator: BenchmarkEvaluator, *operations: str) -> float:
    """Print the values of one chain, and return its validation accuracy."""
    d = chain(*operations)
    name = " -> ".join(operations)
    if not evaluator.has_been_evaluated(d):
        print(f"{name}: not in the table")
        return 0.0
    accuracy, seconds = evaluator.descriptor_evaluate(d, acc="validation_accuracy")
    test_accuracy, _ = evaluator.descriptor_evaluate(d, acc="test_accuracy")
    print(f"{name}: validation {accuracy:.4f}, test {test_accuracy:.4f}, trained in {seconds:.0f} s")
    return accuracy


def main(path: str | None) -> None:
    evaluator = BenchmarkEvaluator(path)
    operations = evaluator.get_available_ops()
    print("available operations:", ", ".join(operations))
    best = max(product(operations, repeat=2), key=lambda pair: show(evaluator, *pair))
    print("best:", " -> ".join(best))


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else None)
    except NordError as error:
        sys.exit(str(error))
