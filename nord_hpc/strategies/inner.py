"""The strategy inside another one: its class and options from the section of the job that names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from nord_hpc import job as jobs
from nord_hpc import registry
from nord_hpc.errors import BadInput
from nord_hpc.explanations import explain
from nord_hpc.job import Named


def inner_strategy(section: Mapping[str, Any]) -> tuple[Any, BaseModel]:
    """Class and options of an inner strategy.

    Args:
        section: its name and options: {name: regularized_evolution, population: 20}.

    Raises:
        ValueError: there is no such strategy, or it has not these options.
    """
    name = section.get("name")
    if not isinstance(name, str) or registry.plugin_file(name) is not None:
        known = ", ".join(registry.names("strategy"))
        raise ValueError(f"strategy.name {name!r} is no name of a strategy; set one of {known}")
    try:
        return jobs.options_of("strategy", Named.model_validate(dict(section)), folder=Path())
    except BadInput as error:
        raise ValueError(str(error)) from error
    except ValidationError as error:
        raise ValueError(explain(error, prefix=("strategy",))) from error
