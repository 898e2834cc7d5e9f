"""A graph of convolutional layers as a sequence of decisions, for policies; what makes it a valid graph is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nord_hpc.trial import Json

INPUT = -1


class ConvDecisions:
    """How many layers, then for each of the most layers its fields and, with `skip`, which earlier ones it reads.

    As in Zoph and Le, "Neural Architecture Search with Reinforcement Learning", arXiv 1611.01578: for each earlier
    layer, and the input, one decision of two alternatives. The first layer reads the input alone. What is decided of
    layers beyond the number of layers does not matter.

    Args:
        fields: the alternatives of each field of a layer, in order.

    Attributes:
        counts: the number of alternatives of each decision.
        skips: for each decision None or, where it is whether a layer reads an earlier one, the position of the last
            decision of that one; for the input, of the number of layers.
    """

    def __init__(self, fields: Mapping[str, tuple[Json, ...]], *, min_layers: int, max_layers: int, skip: bool) -> None:
        self._fields = fields
        self._min_layers, self._skip = min_layers, skip
        counts: list[int] = [max_layers - min_layers + 1]
        skips: list[int | None] = [None]
        # Position of the last decision of the input and of each layer.
        last = [0]
        of_a_layer = [len(alternatives) for alternatives in fields.values()]
        for layer in range(max_layers):
            earlier = list(last) if skip and layer else []
            counts += [*of_a_layer, *[2] * len(earlier)]
            skips += [*[None] * len(of_a_layer), *earlier]
            last.append(len(counts) - 1)
        self.counts = tuple(counts)
        self.skips = tuple(skips)

    def layers(self, choices: Sequence[int]) -> list[Json]:
        """The layers of these choices, each with fields and inputs; one that reads nothing reads the network's input.

        That poolings may be too many, and that layers may be read by none, is for the space to mend.
        """
        following = iter(choices)
        layers: list[Json] = []
        for layer in range(self._min_layers + next(following)):
            made = {field: alternatives[next(following)] for field, alternatives in self._fields.items()}
            if self._skip and layer:
                made["inputs"] = [source for source in range(INPUT, layer) if next(following)] or [INPUT]
            else:
                made["inputs"] = [layer - 1]
            layers.append(made)
        return layers
