"""Networks from descriptors: a chain, and a graph whose branches differ in size and channels where they meet.

Usage: python nord_descriptor.py [FOLDER], where the pictures are to be saved as chain.png and branches.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from nord_hpc.neural_nets import NeuralDescriptor, NeuralNet

CONV = nn.Conv2d
POOL = nn.MaxPool2d


def chain() -> NeuralDescriptor:
    """Layers one after the other; names are made up."""
    d = NeuralDescriptor()
    d.add_layer_sequential(CONV, {"in_channels": 3, "out_channels": 5, "kernel_size": 3})
    d.add_layer_sequential(CONV, {"in_channels": 5, "out_channels": 10, "kernel_size": 5})
    d.add_layer_sequential(POOL, {"kernel_size": 2, "stride": 2})
    d.add_layer_sequential(POOL, {"kernel_size": 2, "stride": 5})
    return d


def branches() -> NeuralDescriptor:
    """Layers with names, connected by hand."""
    d = NeuralDescriptor()
    d.add_layer(CONV, {"in_channels": 3, "out_channels": 5, "kernel_size": 3}, "conv")
    d.add_layer(CONV, {"in_channels": 5, "out_channels": 10, "kernel_size": 5}, "conv2")
    d.add_layer(CONV, {"in_channels": 10, "out_channels": 20, "kernel_size": 3}, "conv3")
    d.add_layer(POOL, {"kernel_size": 2, "stride": 2}, "pool1")
    d.add_layer(POOL, {"kernel_size": 2, "stride": 5}, "pool2")
    d.connect_layers("conv", "conv2")
    d.connect_layers("conv2", "conv3")
    d.connect_layers("conv3", "pool2")
    d.connect_layers("conv2", "pool1")
    d.connect_layers("pool1", "pool2")
    return d


def show(name: str, d: NeuralDescriptor, *, size: int, folder: Path | None) -> None:
    """Print the network for square colour images, run it once, and save its picture."""
    net = NeuralNet(net_descriptor=d, num_classes=10, input_shape=(size, size), input_channels=3)
    outputs = net(torch.zeros(2, 3, size, size))
    print(f"{name}: {net.n_parameters} parameters, output {tuple(outputs.shape)}")
    for layer, module in net.layers.items():
        print(f"  {layer}: {module}")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        net.plot(name).savefig(folder / f"{name}.png")


def main(folder: Path | None) -> None:
    show("chain", chain(), size=32, folder=folder)
    show("branches", branches(), size=128, folder=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
