"""Layers outside the table: the user's classes and torch's rarer ones; inferred by a run on torch's meta device.

A kind is "module:QualName", "file.py:Class" (relative to the job's folder), or the name of a class of torch.nn. An
input width that the class asks for by one of torch's names (in_channels, in_features, num_features) is filled in.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from functools import reduce
from pathlib import Path
from typing import Any

from nord_hpc import registry
from nord_hpc.builder.operations import OPERATIONS
from nord_hpc.builder.shapes import Inferred, Parameters, Shape, Site, describe
from nord_hpc.errors import BadInput, Infeasible

_WIDTHS = ("in_channels", "in_features", "num_features")
_BATCH = 97
"""Unlike a number of channels, so that a layer which takes the batch for channels is found out. Costs nothing."""


def factory_of(site: Site) -> str:
    """The class of a kind outside the table, as "module:Class" or "file.py:Class"."""
    if ":" in site.kind:
        return site.kind
    import torch

    cls = getattr(torch.nn, site.kind, None)
    if isinstance(cls, type) and issubclass(cls, torch.nn.Module):
        return f"torch.nn:{site.kind}"
    known = {kind.lower(): kind for kind in OPERATIONS}
    close = difflib.get_close_matches(site.kind.lower(), known, n=1)
    hint = f"did you mean {known[close[0]]}? " if close else ""
    site.refuse(f"is of an unknown kind: {hint}set an operation, a class of torch.nn, MODULE:CLASS or FILE.py:CLASS")


def load(factory: str, *, folder: Path) -> Any:
    """The class that `factory` names.

    Raises:
        BadInput: there is no such file, module or class.
    """
    file = registry.plugin_file(factory)
    if file is not None:
        own = (folder / "code" / Path(file).name).resolve()  # where a run folder keeps copies of the user's files
        name = factory.rpartition(":")[2]
        return registry.resolve("layer", f"{own}:{name}" if own.is_file() else factory, folder=folder)
    module, _, name = factory.partition(":")
    try:
        return reduce(getattr, name.split("."), _module(module, folder=folder))
    except (ImportError, AttributeError) as error:
        raise BadInput(f"layer class {factory!r}: cannot be imported: {type(error).__name__}: {error}") from error


def _module(name: str, *, folder: Path) -> Any:
    """The module of that name; where it is not installed, the copy of its file in the run folder."""
    own = (folder / "code" / f"{name}.py").resolve()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name or not own.is_file():
            raise
    return registry.import_file(f"layer class {name}", str(own), folder=folder)


def infer(site: Site, factory: str, given: Parameters, shape: Shape, *, folder: Path) -> Inferred:
    """Make the layer on the meta device, and send a batch of `shape` through it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    cls = load(factory, folder=folder)
    parameters = {**given, **_width(cls, shape)}
    if factory.startswith("torch.nn:"):
        parameters.pop("inplace", None)
    state = torch.get_rng_state()
    counter = FlopCounterMode(display=False)
    try:
        with torch.device("meta"):
            module = cls(**parameters)
        with counter, torch.no_grad():
            output = module(torch.empty(_BATCH, *shape, device="meta"))
    except Infeasible:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        site.refuse(f"cannot work on {describe(shape)}: {type(error).__name__}: {reason}")
    finally:
        torch.set_rng_state(state)
    if not isinstance(output, torch.Tensor) or output.dim() < 2 or output.shape[0] != _BATCH:
        site.refuse(f"does not give one tensor with as many samples as its input, a batch of {_BATCH}")
    return Inferred(
        parameters,
        tuple(output.shape[1:]),
        sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad),
        counter.get_total_flops() // (2 * _BATCH),
    )


def _width(cls: Any, shape: Shape) -> dict[str, int]:
    try:
        names = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return {}
    return {name: shape[-1] if name == "in_features" else shape[0] for name in _WIDTHS if name in names}
