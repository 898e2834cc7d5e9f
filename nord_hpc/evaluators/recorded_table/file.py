"""The table file: what trainings came to, in HDF5 with all nested values as JSON text; never pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np

from nord_hpc.errors import BadInput
from nord_hpc.trial import Json

FORMAT = 1
NUMBERS = {"epochs": np.int64, "fraction": np.float64, "seed": np.int64, "fitness": np.float64, "seconds": np.float64}
TEXTS = ("settings", "curve", "test")


@dataclass(frozen=True, slots=True)
class Recording:
    """One training.

    Attributes:
        descriptor_hash: of its network.
        settings: fields of the job that the candidate had set.
        fitness: on the validation part.
        seconds: rank-seconds that it took.
        curve: (epochs, fitness then), where it was noted.
        test: metrics on the test part, where they are known.
    """

    descriptor_hash: str
    epochs: int
    fraction: float
    seed: int
    settings: Mapping[str, Json]
    fitness: float
    seconds: float
    curve: tuple[tuple[int, float], ...] = ()
    test: Mapping[str, Json] | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What holds for the whole table.

    Attributes:
        metric, direction: what fitness is.
        curves_hold: whether a curve at an epoch is the result of a training that ends there, as with a constant
            learning rate.
        evaluated_on: one line for people.
        sources: run folders.
        job: the parts of the job that all the trainings had in common.
        error: of the surrogate on networks that it has not seen; None where there are too few to tell.
        version: of nord_hpc.
    """

    metric: str
    direction: str
    curves_hold: bool
    evaluated_on: str
    sources: tuple[str, ...]
    job: Mapping[str, Json]
    error: Mapping[str, Json] | None
    version: str


@dataclass(frozen=True, slots=True)
class Table:
    """Recordings, and the networks that they are of.

    Attributes:
        networks: descriptors as JSON by their hash.
        sizes: parameters and multiply-adds by hash.
    """

    facts: Facts
    networks: Mapping[str, Json]
    sizes: Mapping[str, tuple[int, int]]
    recordings: Sequence[Recording]


def write_table(path: Path, table: Table) -> None:
    """Write the file under a temporary name and rename it.

    Raises:
        BadInput: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    places = {name: place for place, name in enumerate(table.networks)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(part, "w") as file:
            file.attrs["format"] = FORMAT
            file.attrs["facts"] = json.dumps(asdict(table.facts))
            networks, rows = file.create_group("networks"), file.create_group("trainings")
            networks["descriptor_hash"] = list(table.networks)
            networks["descriptor"] = [json.dumps(descriptor) for descriptor in table.networks.values()]
            networks["n_parameters"] = np.array([table.sizes[name][0] for name in table.networks], dtype=np.int64)
            networks["multiply_adds"] = np.array([table.sizes[name][1] for name in table.networks], dtype=np.int64)
            rows["network"] = np.array([places[row.descriptor_hash] for row in table.recordings], dtype=np.int64)
            for name, kind in NUMBERS.items():
                rows[name] = np.array([getattr(row, name) for row in table.recordings], dtype=kind)
            for name in TEXTS:
                rows[name] = [json.dumps(getattr(row, name)) for row in table.recordings]
        os.replace(part, path)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def read_table(path: Path) -> Table:
    """Read the file.

    Raises:
        BadInput: it is not there, or no table.
    """
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise BadInput(
                    f"{path}: is no table of format {FORMAT}; make it with: nord-hpc table DIR... --out FILE"
                )
            facts = json.loads(file.attrs["facts"])
            networks, rows = file["networks"], file["trainings"]
            hashes = [text.decode() for text in networks["descriptor_hash"][:]]
            descriptors = [json.loads(text) for text in networks["descriptor"][:]]
            sizes = zip(networks["n_parameters"][:].tolist(), networks["multiply_adds"][:].tolist(), strict=True)
            places = rows["network"][:].tolist()
            columns: dict[str, list[Any]] = {name: rows[name][:].tolist() for name in NUMBERS}
            columns |= {name: [json.loads(text) for text in rows[name][:]] for name in TEXTS}
    except (OSError, KeyError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as a table of trainings: {' '.join(str(error).split())}") from error
    columns["curve"] = [tuple((epochs, fitness) for epochs, fitness in curve) for curve in columns["curve"]]
    recordings = [
        Recording(descriptor_hash=hashes[place], **{name: values[row] for name, values in columns.items()})
        for row, place in enumerate(places)
    ]
    made = Facts(**{**facts, "sources": tuple(facts["sources"])})
    return Table(made, dict(zip(hashes, descriptors, strict=True)), dict(zip(hashes, sizes, strict=True)), recordings)
