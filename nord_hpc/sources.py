"""Where the classes of the user's own files come from, and the names by which other processes find them there."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PLUGIN_PREFIX = "nord_hpc_plugin_"
"""Begin of the module names of plug-in files, which are imported by their path."""


def running_script() -> Path | None:
    """The file that Python was started with; None in an interactive session."""
    file = _file_of(sys.modules.get("__main__"))
    return None if file is None or file.suffix != ".py" or not file.is_file() else file.resolve()


def name_in_file(cls: type) -> str | None:
    """ "FILE.py:CLASS" for a class of the start script or of a plug-in file; None for those of other modules."""
    if cls.__module__ != "__main__" and not cls.__module__.startswith(PLUGIN_PREFIX):
        return None
    file = _file_of(sys.modules.get(cls.__module__))
    return None if file is None else f"{file.name}:{cls.__qualname__}"


def loaded_from(path: Path) -> ModuleType | None:
    """The start script or the imported module that `path` is the file of, or a copy of that file with its name.

    So a class that is asked for by its file is the one that the user's own code has at hand, and not a second one.
    """
    content = path.read_bytes()
    for name, module in list(sys.modules.items()):
        file = None if name.startswith(PLUGIN_PREFIX) else _file_of(module)
        if file is not None and file.name == path.name and file.is_file() and file.read_bytes() == content:
            return module
    return None


def file_being_imported() -> Path | None:
    """The plug-in file whose top level is what runs at this moment, at whatever depth."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__", "").startswith(PLUGIN_PREFIX):
            return Path(frame.f_globals["__file__"])
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _file_of(module: Any) -> Path | None:
    # Not by getattr: there are modules that import others when they are asked for an attribute.
    file = getattr(module, "__dict__", {}).get("__file__")
    return Path(file) if isinstance(file, str) else None
