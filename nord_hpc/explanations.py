"""Errors of validation in words: which field, what is wrong with it, what to set."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nord_hpc import registry


def explain(error: ValidationError, *, prefix: tuple[str, ...] = (), models: Sequence[type[BaseModel]] = ()) -> str:
    """A validation error as one line: the first field at fault, what is wrong, what to set, how many more there are.

    Args:
        prefix: section that the model stands for.
        models: whose fields a misspelt one may mean.
    """
    errors = error.errors()
    # A key that is misspelt is also missing, which says less.
    misspelt = (given for given in errors if given["type"] == "extra_forbidden" and _meant(models, given["loc"]))
    first = next(misspelt, errors[0])
    field = ".".join(str(part) for part in (*prefix, *first["loc"]))
    kind, context, given = first["type"], first.get("ctx", {}), first["input"]
    if kind == "missing":
        text = "is missing; set it"
    elif kind == "extra_forbidden":
        text = f"is not a known key; remove it, or check its spelling and indentation{_meant(models, first['loc'])}"
    elif kind == "value_error":
        text = str(context["error"])
    elif kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        text = f"{_shown(given)} is not a choice; set {context['expected']}{registry.did_you_mean(given, choices)}"
    else:
        text = f"{_shown(given)} is wrong; set {_wanted(kind, context, first['msg'])}"
    line = f"{field}: {text}" if field else text
    more = len(errors) - 1
    return line + (f" (and {more} more)" if more else "")


def _meant(models: Sequence[type[BaseModel]], place: tuple[int | str, ...]) -> str:
    """The known key that an unknown one at this place is close to, in words; empty where there is none."""
    known: Mapping[str, FieldInfo] = {name: field for model in models for name, field in model.model_fields.items()}
    for part in place[:-1]:
        kind = known[part].annotation if isinstance(part, str) and part in known else None
        inner = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, BaseModel)]
        if not inner:
            return ""
        known = inner[0].model_fields
    return registry.did_you_mean(place[-1], list(known))


def _wanted(kind: str, context: Mapping[str, Any], message: str) -> str:
    """What a field takes, in words."""
    kinds = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text"}
    bounds = {"greater_than_equal": "ge", "greater_than": "gt", "less_than_equal": "le", "less_than": "lt"}
    signs = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    if kind == "string_pattern_mismatch":
        return f"text of the form {context['pattern']}"
    if kind in bounds:
        return f"a number {signs[bounds[kind]]} {context[bounds[kind]]:g}"
    for name, words in kinds.items():
        if kind.startswith(f"{name}_"):
            return words
    return message.removeprefix("Input should be ")


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
