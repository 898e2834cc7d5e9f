"""Names in a job file to classes: built-in ones, those of installed packages, and those of the user's own files."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import zlib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from nord_hpc.errors import BadInput

BUILT_IN: dict[str, dict[str, str]] = {
    "space": {
        "conv_graph": "nord_hpc.spaces.conv_graph:ConvGraph",
        "deep_neat": "nord_hpc.spaces.deep_neat:DeepNeat",
        "nasbench101": "nord_hpc.spaces.nasbench101:NasBench101",
    },
    "strategy": {
        "random_search": "nord_hpc.strategies.random_search:RandomSearch",
        "regularized_evolution": "nord_hpc.strategies.regularized_evolution:RegularizedEvolution",
    },
    "dataset": {
        "activity_recognition": "nord_hpc.datasets.activity_recognition:ActivityRecognition",
        "arrays": "nord_hpc.datasets.arrays:Arrays",
        "cifar10": "nord_hpc.datasets.cifar10:Cifar10",
        "digits": "nord_hpc.datasets.digits:Digits",
        "fashion_mnist": "nord_hpc.datasets.fashion_mnist:FashionMnist",
        "image_folder": "nord_hpc.datasets.image_folder:ImageFolder",
    },
    "evaluator": {
        "nasbench101": "nord_hpc.evaluators.nasbench101:NasBench101Evaluator",
        "synthetic": "nord_hpc.evaluators.synthetic:SyntheticEvaluator",
        "training": "nord_hpc.evaluators.training_evaluator:TrainingEvaluator",
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


def names(kind: str) -> list[str]:
    """The names that may stand in a job file, without those of plug-in files."""
    return sorted({*BUILT_IN[kind], *(point.name for point in entry_points(group=f"nord_hpc.{kind}"))})


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
    for point in entry_points(group=f"nord_hpc.{kind}"):
        if point.name == name:
            return point.load()
    known = names(kind)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise BadInput(f"unknown {kind} {name!r}: {hint}set one of {', '.join(known)}, or FILE.py:CLASS")


def _from_file(kind: str, name: str, *, folder: Path) -> Any:
    file, _, attribute = name.rpartition(":")
    path = (folder / file).resolve()
    if not path.is_file():
        raise BadInput(f"{kind} {name!r}: there is no file {path}")
    module_name = f"nord_hpc_plugin_{path.stem}_{zlib.crc32(str(path).encode()):x}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise BadInput(f"{kind} {name!r}: {path} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise BadInput(f"{kind} {name!r}: {path} defines no {attribute}")
    return getattr(module, attribute)
