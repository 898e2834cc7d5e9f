"""Finished runs as a table, and the evaluator that looks candidates up in it; runs are read by `nord-hpc table`."""

from nord_hpc.evaluators.recorded_table.evaluator import RecordedTableEvaluator
from nord_hpc.evaluators.recorded_table.file import Facts, Recording, Table, read_table, write_table
from nord_hpc.evaluators.recorded_table.surrogate import PredictionError, cross_validated

__all__ = [
    "Facts",
    "PredictionError",
    "RecordedTableEvaluator",
    "Recording",
    "Table",
    "cross_validated",
    "read_table",
    "write_table",
]
