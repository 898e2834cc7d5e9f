"""NORD's names for descriptors, networks and evaluators."""

from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.evaluators.nasbench101 import BenchmarkEvaluator
from nord_hpc.scripting.environment import Environment
from nord_hpc.scripting.evaluators import DistributedEvaluator, LocalBatchEvaluator, LocalEvaluator
from nord_hpc.scripting.neural_net import NeuralNet

__all__ = [
    "BenchmarkEvaluator",
    "DistributedEvaluator",
    "Environment",
    "LocalBatchEvaluator",
    "LocalEvaluator",
    "NeuralDescriptor",
    "NeuralNet",
]
