"""A plan made into a torch module; everything about shapes and costs is left to `plan`."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from nord_hpc.builder import custom
from nord_hpc.builder.joins import Adapter
from nord_hpc.builder.plan import NetworkPlan, Step

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_AVERAGE: dict[int, Any] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_ADAPTIVE_AVERAGE: dict[int, Any] = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}


def build(plan: NetworkPlan, *, seed: int, folder: Path = Path(".")) -> Network:
    """The network of a plan, on the CPU, with initial weights that follow from `seed` alone.

    Weights are drawn step by step in canonical order, so that descriptors that differ in the names or the order of
    their layers give equal networks. The global random state is left as it was.

    Args:
        folder: where relative files of custom layers are looked for.
    """
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        return Network(plan, folder=folder)
    finally:
        torch.set_rng_state(state)


class _Use(NamedTuple):
    """How one step is run: its module, the modules that project its inputs, and the results not needed after it."""

    step: Step
    module: str
    projections: tuple[str | None, ...]
    finished: tuple[int, ...]


class Network(nn.Module):
    """The steps of a plan, run in order; a result is let go after its last use, and no input is changed in place.

    Modules are called "layer{step}" and, for projections, "layer{step}_from{source}", whatever the layers' names.
    """

    def __init__(self, plan: NetworkPlan, *, folder: Path) -> None:
        super().__init__()
        self.plan = plan
        last_use = {adapter.source: index for index, step in enumerate(plan.steps) for adapter in step.inputs}
        finished: list[list[int]] = [[] for _ in plan.steps]
        for source, index in last_use.items():
            finished[index].append(source)
        self._uses = []
        for index, step in enumerate(plan.steps):
            projections = tuple(self._add_projection(index, adapter) for adapter in step.inputs)
            name = f"layer{index}"
            self.add_module(name, custom.load(step.factory, folder=folder)(**step.parameters))
            self._uses.append(_Use(step, name, projections, tuple(finished[index])))
            if step.parameters.get("tied") and step.kind == "PositionLinear":
                self._modules[name].tie(self._modules["layer0"])  # type: ignore[union-attr,operator]

    def _add_projection(self, index: int, adapter: Adapter) -> str | None:
        if adapter.project is None:
            return None
        n_inputs, n_outputs = adapter.project
        dims = len(adapter.shape) - 1
        name = f"layer{index}_from{adapter.source}"
        if dims:
            self.add_module(name, _CONVOLUTIONS[dims](n_inputs, n_outputs, 1, bias=False))
        else:
            self.add_module(name, nn.Linear(n_inputs, n_outputs, bias=False))
        return name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, *input_shape] to [N, *output_shape]."""
        results: list[torch.Tensor | None] = []
        for step, name, projections, finished in self._uses:
            if step.inputs:
                parts = [
                    self._adapt(adapter, results[adapter.source], projection)
                    for adapter, projection in zip(step.inputs, projections, strict=True)
                ]
                joined = parts[0] if step.join is None else _join(parts, step.join)
                del parts
            else:
                joined = x
            for source in finished:
                results[source] = None
            if step.flatten:
                joined = joined.flatten(1)
            results.append(self._modules[name](joined))  # type: ignore[misc]
        output = results[-1]
        assert output is not None
        return output

    def _adapt(self, adapter: Adapter, value: torch.Tensor | None, projection: str | None) -> torch.Tensor:
        assert value is not None
        if adapter.pool_to is not None:
            value = _average_to(value, adapter.pool_to)
        if projection is not None:
            value = self._modules[projection](value)  # type: ignore[misc]
        if adapter.enlarge_to is not None:
            value = functional.interpolate(value, size=adapter.enlarge_to, mode="nearest")
        return value


def _average_to(value: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Average pooling to `sizes`; () makes vectors.

    Plain pooling stands in for the adaptive one where the windows are equal, as on GPUs only its backward pass repeats.
    """
    given = value.shape[2:]
    if prod(sizes) == 1:
        return value.mean(dim=tuple(range(2, value.dim())), keepdim=bool(sizes))
    pooled: torch.Tensor
    if all(size % wanted == 0 for size, wanted in zip(given, sizes, strict=True)):
        window = tuple(size // wanted for size, wanted in zip(given, sizes, strict=True))
        pooled = _AVERAGE[len(sizes)](value, window)
        return pooled
    pooled = _ADAPTIVE_AVERAGE[len(sizes)](value, sizes)
    return pooled


def _join(parts: list[torch.Tensor], join: str) -> torch.Tensor:
    """Several inputs as one; sums are made from left to right."""
    if join == "concat":
        return torch.cat(parts, dim=1)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / len(parts) if join == "mean" else total
