"""Names in a job file to classes: built-in ones, those of installed packages, and those of the user's own files."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import sys
import zlib
from collections.abc import Sequence
from functools import reduce
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from nord_hpc.errors import BadInput
from nord_hpc.sources import PLUGIN_PREFIX, loaded_from, running_script

BUILT_IN: dict[str, dict[str, str]] = {
    "space": {
        "co_deep_neat": "nord_hpc.spaces.co_deep_neat:CoDeepNeat",
        "conv_graph": "nord_hpc.spaces.conv_graph:ConvGraph",
        "deep_neat": "nord_hpc.spaces.deep_neat:DeepNeat",
        "hyperparameters": "nord_hpc.spaces.hyperparameters:Hyperparameters",
        "joint": "nord_hpc.spaces.joint:Joint",
        "nasbench101": "nord_hpc.spaces.nasbench101:NasBench101",
        "nasbench201": "nord_hpc.spaces.nasbench201:NasBench201",
        "nasnet_cell": "nord_hpc.spaces.nasnet_cell:NasNetCell",
        "recurrent_cell": "nord_hpc.spaces.recurrent_cell:RecurrentCell",
        "spike_cells": "nord_hpc.spaces.spike_cells:SpikeCells",
    },
    "strategy": {
        "agebo": "nord_hpc.strategies.agebo:AgEBO",
        "asha": "nord_hpc.strategies.asha:Asha",
        "bananas": "nord_hpc.strategies.bananas:Bananas",
        "bayesian": "nord_hpc.strategies.bayesian:Bayesian",
        "co_deep_neat": "nord_hpc.strategies.co_deep_neat:CoDeepNeat",
        "deep_neat": "nord_hpc.strategies.deep_neat:DeepNeat",
        "genetic": "nord_hpc.strategies.genetic:Genetic",
        "local_search": "nord_hpc.strategies.local_search:LocalSearch",
        "mo_asha": "nord_hpc.strategies.mo_asha:MoAsha",
        "nsga2": "nord_hpc.strategies.nsga2:NSGA2",
        "random_search": "nord_hpc.strategies.random_search:RandomSearch",
        "reinforce": "nord_hpc.strategies.reinforce:Reinforce",
        "regularized_evolution": "nord_hpc.strategies.regularized_evolution:RegularizedEvolution",
        "screened": "nord_hpc.strategies.screened:Screened",
    },
    "dataset": {
        "activity_recognition": "nord_hpc.datasets.activity_recognition:ActivityRecognition",
        "arrays": "nord_hpc.datasets.arrays:Arrays",
        "cifar10": "nord_hpc.datasets.cifar10:Cifar10",
        "digits": "nord_hpc.datasets.digits:Digits",
        "fashion_mnist": "nord_hpc.datasets.fashion_mnist:FashionMnist",
        "image_folder": "nord_hpc.datasets.image_folder:ImageFolder",
        "text": "nord_hpc.datasets.text:Text",
    },
    "evaluator": {
        "learning_curves": "nord_hpc.evaluators.learning_curves:LearningCurvesEvaluator",
        "nasbench101": "nord_hpc.evaluators.nasbench101:NasBench101Evaluator",
        "nasbench201": "nord_hpc.evaluators.nasbench201:NasBench201Evaluator",
        "synthetic": "nord_hpc.evaluators.synthetic:SyntheticEvaluator",
        "table": "nord_hpc.evaluators.recorded_table:RecordedTableEvaluator",
        "training": "nord_hpc.evaluators.training_evaluator:TrainingEvaluator",
        "zero_cost": "nord_hpc.evaluators.zero_cost:ZeroCostEvaluator",
    },
    "backend": {
        "horovod": "nord_hpc.data_parallel.horovod:HorovodBackend",
        "single": "nord_hpc.data_parallel.single:SingleBackend",
        "torch_ddp": "nord_hpc.data_parallel.torch_ddp:TorchDdpBackend",
    },
}
"""Kind to name to "module:Class". A new strategy, dataset, backend or evaluator is one new file and one line here.

Packages add to a kind by an entry point in the group "nord_hpc.KIND"; users by naming "file.py:Class" in the job.
"""


@functools.cache
def installed(kind: str) -> dict[str, EntryPoint]:
    """What installed packages add to a kind; to look for it takes milliseconds."""
    return {point.name: point for point in entry_points(group=f"nord_hpc.{kind}")}


def names(kind: str) -> list[str]:
    """The names that may stand in a job file, without those of plug-in files."""
    return sorted({*BUILT_IN[kind], *installed(kind)})


def did_you_mean(given: object, known: Sequence[str]) -> str:
    """The known name that a wrong one is close to, in words to put behind a message; empty where there is none."""
    close = difflib.get_close_matches(given, known, n=1) if isinstance(given, str) else []
    return f" (did you mean {close[0]}?)" if close else ""


def plugin_file(name: str) -> str | None:
    """The file of a plug-in name such as "layers.py:MyLayer"; None for other names."""
    file, separator, _ = name.rpartition(":")
    return file if separator and file.endswith(".py") else None


def resolve(kind: str, name: str, *, folder: Path) -> Any:
    """The class of that kind and name, imported now.

    Args:
        folder: where relative plug-in files are looked for: the folder of the job file, or the run folder.

    Raises:
        BadInput: no such name, file or class.
    """
    if plugin_file(name) is not None:
        return _from_file(kind, name, folder=folder)
    target = BUILT_IN[kind].get(name)
    if target is not None:
        module, _, attribute = target.partition(":")
        return getattr(importlib.import_module(module), attribute)
    point = installed(kind).get(name)
    if point is not None:
        return point.load()
    known = names(kind)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise BadInput(f"unknown {kind} {name!r}: {hint}set one of {', '.join(known)}, or FILE.py:CLASS")


def import_file(what: str, file: str, *, folder: Path) -> ModuleType:
    """The module of a plug-in file, imported by its path unless it, or a copy of it, is there already.

    The start script is found by its name from everywhere, as its classes are named by its name alone.

    Args:
        what: asks for it, for messages.

    Raises:
        BadInput: there is no such file, or it cannot be imported.
    """
    path = (folder / file).resolve()
    if not path.is_file():
        script = running_script()
        if script is None or script.name != path.name:
            raise BadInput(f"{what}: there is no file {path}")
        path = script
    module_name = f"{PLUGIN_PREFIX}{path.stem}_{zlib.crc32(str(path).encode()):x}"
    if module_name not in sys.modules:
        sys.modules[module_name] = loaded_from(path) or _imported(what, module_name, path)
    return sys.modules[module_name]


def _from_file(kind: str, name: str, *, folder: Path) -> Any:
    file, _, attribute = name.rpartition(":")
    module = import_file(f"{kind} {name!r}", file, folder=folder)
    try:
        return reduce(getattr, attribute.split("."), module)
    except AttributeError:
        hint = did_you_mean(attribute, [known for known, value in vars(module).items() if isinstance(value, type)])
        raise BadInput(f"{kind} {name!r}: {(folder / file).resolve()} defines no {attribute}{hint}") from None


def _imported(what: str, module_name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    # The other files that the user has declared stand beside it, and may be imported by it.
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, BadInput) or not isinstance(error, Exception):
            raise
        raise BadInput(f"{what}: {path} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module
