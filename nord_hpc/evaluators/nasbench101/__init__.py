"""NAS-Bench-101 as an evaluator: record files, the index made of them, and answers from it instead of training."""

from nord_hpc.evaluators.nasbench101.benchmark import BenchmarkEvaluator
from nord_hpc.evaluators.nasbench101.evaluator import NasBench101Evaluator
from nord_hpc.evaluators.nasbench101.table import Run, Table, open_table

__all__ = ["BenchmarkEvaluator", "NasBench101Evaluator", "Run", "Table", "open_table"]
