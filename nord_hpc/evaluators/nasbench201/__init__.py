"""NAS-Bench-201 as an evaluator: tables of its results, and answers from them instead of training."""

from nord_hpc.evaluators.nasbench201.evaluator import NasBench201Evaluator
from nord_hpc.evaluators.nasbench201.latencies import Latencies
from nord_hpc.evaluators.nasbench201.table import Result, Table, open_table

__all__ = ["Latencies", "NasBench201Evaluator", "Result", "Table", "open_table"]
