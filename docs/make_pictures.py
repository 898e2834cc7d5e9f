"""Draws three networks into docs/pictures, each as specified and as realized: python docs/make_pictures.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nord_hpc.builder import plan
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.report.figures import save_figure
from nord_hpc.report.networks import realization_figure, specification_figure
from nord_hpc.spaces.conv_graph import ConvGraph

FOLDER = Path(__file__).with_name("pictures")
DOTS_PER_INCH = 100


def paper() -> NeuralDescriptor:
    """The network of NORD's first example."""
    network = NeuralDescriptor()
    network.add_layer("Conv2d", {"in_channels": 3, "out_channels": 5, "kernel_size": 5}, "conv")
    network.add_layer_sequential("MaxPool2d", {"kernel_size": 2, "stride": 2}, "pool")
    return network


def branches() -> NeuralDescriptor:
    """Branches of different channels and sizes that meet, and layers that lead nowhere."""
    network = NeuralDescriptor()
    network.add_layer("Identity", None, "in")
    for name, channels, stride in (("narrow", 16, 1), ("wide", 32, 1), ("coarse", 32, 2), ("unused", 64, 1)):
        parameters = {"out_channels": channels, "kernel_size": 3, "padding": 1, "stride": stride}
        network.add_layer("Conv2d", parameters, name)
        network.connect_layers("in", name)
        network.add_layer("BatchNorm2d", None, f"{name}_norm")
        network.connect_layers(name, f"{name}_norm")
        network.add_layer("ReLU", None, f"{name}_relu")
        network.connect_layers(f"{name}_norm", f"{name}_relu")
    network.add_layer("Conv2d", {"out_channels": 48, "kernel_size": 1}, "sum")
    network.add_layer("MaxPool2d", {"kernel_size": 2}, "pool")
    network.add_layer("Conv2d", {"out_channels": 64, "kernel_size": 3, "padding": 1}, "end", join="concat")
    network.add_layer("ReLU", None, "end_relu")
    edges = [("narrow_relu", "sum"), ("wide_relu", "sum"), ("sum", "pool"), ("pool", "end"), ("coarse_relu", "end")]
    for source, target in [*edges, ("in", "end"), ("end", "end_relu")]:
        network.connect_layers(source, target)
    return network


def fifty_layers() -> NeuralDescriptor:
    """A network of about 50 layers from the space conv_graph."""
    space = ConvGraph(ConvGraph.Options(min_layers=15, max_layers=15, channels=(16, 32, 64), max_poolings=3))
    return space.to_descriptor(space.sample(np.random.default_rng(4)))


def main() -> None:
    for name, network, size in (
        ("paper", paper(), 32),
        ("branches", branches(), 16),
        ("fifty_layers", fifty_layers(), 32),
    ):
        planned = plan(network, input_shape=(3, size, size), n_outputs=10)
        save_figure(specification_figure(network), FOLDER / f"{name}_specification.png", dots_per_inch=DOTS_PER_INCH)
        save_figure(
            realization_figure(network, planned), FOLDER / f"{name}_realization.png", dots_per_inch=DOTS_PER_INCH
        )


if __name__ == "__main__":
    main()
