"""A data set of one's own in a few lines: MNIST from its four IDX files, packed (.gz) or not.

Usage: python custom_dataset_mnist.py FOLDER [--epochs 2] [--data-percentage 1.0] [--split test]
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn, optim

from nord_hpc.configurations.all import Configs
from nord_hpc.datasets import RawData
from nord_hpc.datasets.fashion_mnist import read_idx, unpacked
from nord_hpc.errors import BadInput, NordError
from nord_hpc.neural_nets import LocalEvaluator, NeuralDescriptor


def read(folder: Path, name: str, *, n_axes: int) -> np.ndarray:
    """One of the files as an array."""
    file = next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)
    if file is None:
        raise BadInput(f"{folder} has no {name} (nor {name}.gz); put the four IDX files of MNIST there")
    return read_idx(unpacked(file), file=file, n_axes=n_axes)


def get_mnist(folder: Path) -> RawData:
    """All of MNIST; evaluators carve the validation part, take a share, and normalize."""
    return RawData(
        x_train=read(folder, "train-images-idx3-ubyte", n_axes=3)[:, None],
        y_train=read(folder, "train-labels-idx1-ubyte", n_axes=1),
        x_test=read(folder, "t10k-images-idx3-ubyte", n_axes=3)[:, None],
        y_test=read(folder, "t10k-labels-idx1-ubyte", n_axes=1),
        source="MNIST (Y. LeCun, C. Cortes, C. Burges), yann.lecun.com/exdb/mnist",
        licence="none stated by the authors",
    )


def main(folder: Path, *, epochs: int, data_percentage: float, split: str) -> None:
    conf = Configs()
    conf.print_datasets()
    conf.add_classification_dataset(
        name="MNIST", num_classes=10, input_shape=(28, 28), channels=1, data_load=partial(get_mnist, folder=folder)
    )
    conf.print_datasets()

    d = NeuralDescriptor()
    d.add_layer_sequential(nn.Conv2d, {"in_channels": 1, "out_channels": 5, "kernel_size": 3})
    d.add_layer_sequential(nn.MaxPool2d, {"kernel_size": 2, "stride": 2})

    evaluator = LocalEvaluator(optim.Adam, {}, verbose=True, split=split)
    evaluator.descriptor_evaluate(d, epochs=epochs, data_percentage=data_percentage, dataset="MNIST")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--data-percentage", type=float, default=1.0, help="share of the training data, 0 to 1")
    parser.add_argument("--split", choices=["validation", "test"], default="validation", help="what is scored")
    arguments = parser.parse_args()
    try:
        main(**vars(arguments))
    except NordError as error:
        sys.exit(str(error))
