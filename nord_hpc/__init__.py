"""nord_hpc: neural architecture search as a distributed HPC service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nord_hpc.report.analysis import load as load
    from nord_hpc.scripting.search import Search as Search

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports `Search` and `load` when they are asked for: this package is imported by everything."""
    if name == "Search":
        from nord_hpc.scripting.search import Search

        return Search
    if name == "load":
        from nord_hpc.report.analysis import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
