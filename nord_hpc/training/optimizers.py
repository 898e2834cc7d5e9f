"""The optimizers of a job file, which options they have, and those of the caller's own class; made for one network.

Importing this file imports no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nord_hpc import registry
from nord_hpc.errors import BadInput
from nord_hpc.job import OptimizerSettings

if TYPE_CHECKING:
    import torch

OPTIONS: dict[str, tuple[str, ...]] = {
    "adam": ("betas", "eps", "weight_decay", "amsgrad"),
    "adamw": ("betas", "eps", "weight_decay", "amsgrad"),
    "rmsprop": ("alpha", "eps", "weight_decay", "momentum", "centered"),
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
}
"""Name to torch's own options that may stand beside `lr`."""

FUSED = frozenset({"adam", "adamw", "sgd"})
"""Those that torch can step in one pass over the parameters."""


ELEMENTWISE = frozenset({"ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "SGD"})
"""Classes of torch.optim that treat every number alone: one flat parameter gives what the network's own would."""


def check(settings: OptimizerSettings) -> None:
    """Refuse unknown optimizers and options.

    Raises:
        BadInput: with what to set.
    """
    options = OPTIONS.get(settings.name)
    if options is None:
        hint = registry.did_you_mean(settings.name, list(OPTIONS))
        raise BadInput(
            f"training.optimizer.name: unknown optimizer {settings.name!r}; set one of {', '.join(OPTIONS)}{hint}"
        )
    for option, value in settings.options.items():
        if option not in options:
            close = difflib.get_close_matches(option, options, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            known = f"lr, {', '.join(options)}"
            raise BadInput(f"training.optimizer.{option}: is no option of {settings.name}: {hint}set any of {known}")
        if isinstance(value, str):
            raise BadInput(f"training.optimizer.{option}: {value!r} is text; set a number")


def build(settings: OptimizerSettings, parameters_P: torch.nn.Parameter, *, lr: float) -> torch.optim.Optimizer:
    """The optimizer of one flat parameter, which is cheap: its step is one pass over one tensor."""
    import torch

    classes: dict[str, type[torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "rmsprop": torch.optim.RMSprop,
        "sgd": torch.optim.SGD,
    }
    options = dict(settings.options)
    if settings.name in FUSED:
        options["fused"] = True
    try:
        return classes[settings.name]([parameters_P], lr=lr, **options)  # type: ignore[call-arg]
    except (TypeError, ValueError) as error:
        raise BadInput(f"training.optimizer: {error}; correct the options of {settings.name}") from error


def build_given(
    cls: Callable[..., torch.optim.Optimizer],
    options: Mapping[str, Any],
    *,
    parameters: Sequence[torch.nn.Parameter],
    parameters_P: torch.nn.Parameter,
) -> torch.optim.Optimizer:
    """An optimizer of the caller's class.

    Those of `ELEMENTWISE` step the flat parameter; all others get the network's own, as they may go by their shapes.

    Raises:
        BadInput: the class does not take these options.
    """
    import torch

    chosen = dict(options)
    name = getattr(cls, "__name__", type(cls).__name__)
    elementwise = name in ELEMENTWISE and getattr(torch.optim, name) is cls
    if elementwise and name.lower() in FUSED and not chosen.keys() & {"fused", "foreach", "differentiable"}:
        chosen["fused"] = True
    try:
        return cls([parameters_P] if elementwise else list(parameters), **chosen)
    except (TypeError, ValueError) as error:
        raise BadInput(f"optimizer_params: {error}; correct the parameters of {name}") from error
