"""NORD's names for the data sets, as loaders of batches."""

from nord_hpc.scripting.curators import get_activity_recognition_data, get_cifar10, get_fashion_mnist

__all__ = ["get_activity_recognition_data", "get_cifar10", "get_fashion_mnist"]
