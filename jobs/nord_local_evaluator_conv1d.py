"""Evaluates a small network of 1-D convolutions on the accelerometer data, on this process.

The data are taken from activity_recognition/ or activity_recognition.npz in the folder that NORD_HPC_DATA names, or
downloaded.
"""

from __future__ import annotations

import argparse
import sys

from torch import nn, optim

from nord_hpc.configurations.all import Configs
from nord_hpc.errors import NordError
from nord_hpc.neural_nets import LocalEvaluator, NeuralDescriptor
from nord_hpc.utils import assure_reproducibility

DATASET = "activity_recognition"


def main(*, epochs: int, data_percentage: float) -> None:
    assure_reproducibility()
    conf = Configs()
    d = NeuralDescriptor()
    d.add_layer(nn.Conv1d, {"in_channels": conf.CHANNELS[DATASET], "out_channels": 5, "kernel_size": 3})
    d.add_layer_sequential(nn.Conv1d, {"in_channels": 5, "out_channels": 10, "kernel_size": 3})
    d.add_layer_sequential(nn.MaxPool1d, {"kernel_size": 2, "stride": 2})

    evaluator = LocalEvaluator(
        optimizer_class=optim.Adam,
        optimizer_params={},
        verbose=True,
        metrics=("accuracy", "balanced_accuracy", "macro_f1"),
    )
    loss, metrics, total_time = evaluator.descriptor_evaluate(
        descriptor=d, epochs=epochs, data_percentage=data_percentage, dataset=DATASET
    )
    print(f"training time: {total_time:.2f} s")
    print("validation metrics:", ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    print(f"validation loss: {loss:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--data-percentage", type=float, default=1.0, help="share of the training data, 0 to 1")
    arguments = parser.parse_args()
    try:
        main(epochs=arguments.epochs, data_percentage=arguments.data_percentage)
    except NordError as error:
        sys.exit(str(error))
