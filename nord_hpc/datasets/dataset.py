"""What a data set is, and `open_dataset`: any source to three parts; files are the sources' matter."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ValidationError

from nord_hpc import job
from nord_hpc.datasets import cleaning, prepared
from nord_hpc.datasets.carving import PARTS, Carved, carve_parts
from nord_hpc.datasets.normalization import normalize, normalized_chunks
from nord_hpc.datasets.rows import Rows
from nord_hpc.datasets.sequences import RawSequence, training_windows, windows
from nord_hpc.datasets.storage import Storage, choose_storage
from nord_hpc.errors import BadInput
from nord_hpc.explanations import explain
from nord_hpc.trial import Json

LOG = logging.getLogger(__name__)

Task = Literal["classification", "regression", "language_modelling"]
Array = np.ndarray[Any, np.dtype[Any]]

SMALL_BYTES = 8_000_000
"""Below this size as float32 each process makes its own arrays: that costs less than files and locks."""

LOCK_FIRST_BYTES = 1_000_000
"""From this size of its files on, a source is loaded by one process of the machine at a time."""


@dataclass(frozen=True, kw_only=True)
class RawData:
    """What a source gives, before cleaning, splitting and normalization.

    Samples x are [N, C, ...] with one to three axes after the channels, or vectors [N, F], whose features are their
    channels; uint8 or float32 (other numbers become float32). They may be mapped from files. Targets y are labels,
    integers or strings [N], for classification, and numbers [N] or [N, K] for regression.

    Attributes:
        x_test: None where the data have no test part: 20 % are then carved out, the same in every job.
        x_validation: None for a validation part carved out of the training part.
        groups_train: [N], for example the subject: a group never stands on both sides of a carving.
        class_names: where given, labels are positions in it.
        source: where the data come from.
        licence: as stated by their authors.
        notes: whatever the source changed or left out, for people.
    """

    x_train: Array
    y_train: Array
    source: str
    licence: str
    x_test: Array | None = None
    y_test: Array | None = None
    x_validation: Array | None = None
    y_validation: Array | None = None
    groups_train: Array | None = None
    task: Task = "classification"
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """A data set as named in a job file: a class with pydantic `Options` and this constructor.

    The constructor checks cheaply that `path` is right, and reads no data. A source may also have `files() ->
    list[Path]`, all files that its data come from (downloading them where need be): processes of one machine then
    share one prepared copy without each loading the data.
    """

    Options: type[BaseModel]

    def __init__(self, options: Any, *, path: Path | None, cache: Path) -> None: ...

    def load(self) -> RawData | RawSequence:
        """Read the data.

        Raises:
            BadInput: one line: which file, what is wrong, what to set.
        """


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        x: float32 [N, C, ...], normalized and read-only; or, where `DatasetInfo.normalized` is false, `Rows` of the
            source's own numbers, to be read batch by batch and given to `DatasetInfo.normalize`. For language
            modelling int32 [N, T]: windows of tokens, in the order of the text.
        y: int64 [N] for classification; float32 [N] or [N, K] for regression; for language modelling the next tokens,
            int32 [N, T], -1 behind the end of a part.
    """

    x: Array | Rows
    y: Array


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set, for the builder, the run folder and the report.

    Attributes:
        n_outputs: classes, or numbers to predict.
        input_shape: of one sample, channels first. For language modelling (vocabulary, tokens of a window): the map of
            one-hot vectors for which token indices stand.
        n_train: samples in use, after `fraction`.
        storage: `device` arrays are made as `host` ones, for the trainer to put onto its GPU.
        storage_reason: one line: what was chosen and why.
        mean: of each channel over the training part in use, in the units of the source (bytes: 0 to 255).
        std: likewise; 1 for a constant channel.
        normalized: whether the parts' x are normalized already.
        class_labels: original label to class index; empty for regression.
        class_names: one for each class; empty for regression.
        notes: everything that was changed or left out.
        fingerprint: SHA-256 of all samples and targets before they were split.
        evaluation_streams: for language modelling, the parallel streams in which validation and test part are read.
    """

    name: str
    task: Task
    n_outputs: int
    input_shape: tuple[int, ...]
    n_train: int
    n_validation: int
    n_test: int
    storage: Storage
    storage_reason: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalized: bool
    class_labels: Mapping[cleaning.Label, int]
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    fingerprint: str
    source: str
    licence: str
    evaluation_streams: int = 1

    def normalize(self, x_NC: Array) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Raw samples of this data set as the network is to see them; the same bits as in a prepared part."""
        return normalize(x_NC, mean=self.mean, std=self.std)

    def to_json(self) -> dict[str, Json]:
        values = dataclasses.asdict(self) | {"class_labels": [list(pair) for pair in self.class_labels.items()]}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Json]) -> DatasetInfo:
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**plain | {"class_labels": {label: index for label, index in values["class_labels"]}})


@dataclass(frozen=True)
class Dataset:
    """A data set, ready for training."""

    info: DatasetInfo
    train: Split
    validation: Split
    test: Split


def make_source(settings: job.DatasetSettings, *, folder: Path, cache: Path | None = None) -> Source:
    """The source that the settings name, its options and path checked; no data are read and nothing is written.

    Raises:
        BadInput: one line with the field and what to set.
    """
    cls, options = _class_and_options(settings, folder=folder)
    path = None if settings.path is None else folder / Path(settings.path).expanduser()
    source: Source = cls(options, path=path, cache=cache or prepared.cache_folder())
    return source


def open_dataset(
    settings: job.DatasetSettings, *, folder: Path, cache: Path | None = None, device: str = "cpu"
) -> Dataset:
    """Load, clean, split and normalize the data set of a job; every process of every machine gets the same.

    Large data are prepared by one process of a machine and mapped by the others.

    Args:
        folder: that `settings.path` and plug-in files are relative to.
        cache: for downloads and prepared arrays, best on a disk of this machine; None for NORD_HPC_CACHE or the
            user's cache folder.
        device: "cpu" or "cuda", where the training takes place.

    Raises:
        BadInput: one line: which file or field, what is wrong, what to set.
    """
    cache = cache or prepared.cache_folder()
    source = make_source(settings, folder=folder, cache=cache)
    cache = _stage(settings.stage) if settings.stage is not None else cache
    opening = _Opening(source=source, settings=settings, folder=folder, cache=cache, device=device)
    files = _files_of(source)
    if files is None:
        return opening.make(identity=None)
    identity = {**opening.asked(), "files": files}
    dataset = opening.find(identity)
    if dataset is not None:
        return dataset
    if sum(size for _, size, _ in files) < LOCK_FIRST_BYTES:
        return opening.make(identity=identity)
    with prepared.preparing(cache, prepared.key_of([identity, "load"])):
        return opening.find(identity) or opening.make(identity=identity)


def _stage(text: str) -> Path:
    """The folder on this node where prepared arrays go.

    Raises:
        BadInput: it names a variable that is not set here.
    """
    filled = os.path.expandvars(text)
    if "$" in filled:
        raise BadInput(f"dataset.stage: {text} names a variable that is not set on {socket.gethostname()}; set another")
    return Path(filled).expanduser() / "nord_hpc"


def dataset_of(raw: RawData, settings: job.DatasetSettings) -> Dataset:
    """The data set of raw data at hand, cleaned, split and normalized as in `open_dataset`, in this process's memory.

    Raises:
        BadInput: the data cannot be used.
    """
    carved = _carved(raw, settings)
    return _in_memory(_info(raw, carved, name=settings.name, storage="host", reason="given as arrays"), carved)


@dataclass(frozen=True)
class _Opening:
    """One call of `open_dataset`: what is asked for, in the order in which it is looked for and made."""

    source: Source
    settings: job.DatasetSettings
    folder: Path
    cache: Path
    device: str

    def asked(self) -> dict[str, Json]:
        """All but the data itself that prepared arrays follow from: settings, options, and the source's code."""
        cls, options = _class_and_options(self.settings, folder=self.folder)
        code = hashlib.sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()
        kept = ("name", "path", "validation", "fraction", "split_seed")
        settings = {key: getattr(self.settings, key) for key in kept}
        return {**settings, "options": options.model_dump(mode="json"), "code": code, "class": cls.__qualname__}

    def find(self, identity: Json) -> Dataset | None:
        """The data set from what this or another process has prepared, if it suits the storage that is asked for."""
        for mapped in (False, True):
            found = prepared.find(self.cache, _key(identity, mapped=mapped))
            if found is not None:
                storage, reason = self._storage(found.facts["normalized_bytes"])
                if (storage == "mmap") == mapped:
                    return self._from_prepared(found, storage=storage, reason=reason)
        return None

    def make(self, *, identity: Json | None) -> Dataset:
        """The data set from its source; what is large is prepared on the way.

        Args:
            identity: None where only the content tells.
        """
        raw: object = self.source.load()
        settings = self.settings
        if isinstance(raw, RawSequence):
            return _of_sequence(raw, settings, device=self.device)
        if not isinstance(raw, RawData):
            raise BadInput(f"dataset {settings.name}: load() gave {type(raw).__name__}; return a RawData")
        carved = _carved(raw, settings)
        n_bytes = sum(4 * part.x.size for part in carved.parts.values())
        storage, reason = self._storage(n_bytes)
        info = _info(raw, carved, name=settings.name, storage=storage, reason=reason)
        mapped = all(part.x.mapped for part in carved.parts.values())
        in_place = storage == "mmap" and mapped and settings.stage is None
        if n_bytes < SMALL_BYTES and storage != "mmap":
            return _in_memory(info, carved)
        if n_bytes < SMALL_BYTES and in_place:
            return Dataset(info, **{name: Split(part.x, part.y) for name, part in carved.parts.items()})
        key = _key(identity or {**self.asked(), "fingerprint": carved.fingerprint}, mapped=storage == "mmap")
        facts = {"normalized_bytes": n_bytes, "in_place": in_place, "info": info.to_json()}
        with prepared.preparing(self.cache, key) as found:
            if found is None:
                LOG.info("dataset %s: preparing %s", settings.name, self.cache / "prepared" / key)
                found = prepared.write(self.cache, key, _arrays(info, carved, in_place=in_place), facts)
        return self._from_prepared(found, storage=storage, reason=reason, raw=raw)

    def _storage(self, n_bytes: int) -> tuple[Storage, str]:
        return choose_storage(self.settings.storage, normalized_bytes=n_bytes, device=self.device)

    def _from_prepared(
        self, found: prepared.Prepared, *, storage: Storage, reason: str, raw: RawData | None = None
    ) -> Dataset:
        arrays = found.arrays
        info = dataclasses.replace(
            DatasetInfo.from_json(found.facts["info"]), storage=storage, storage_reason=f"{reason}; in {found.folder}"
        )
        if not found.facts["in_place"]:
            return Dataset(info, **{name: Split(arrays[f"x_{name}"], arrays[f"y_{name}"]) for name in PARTS})
        if raw is None:
            loaded = self.source.load()
            assert isinstance(loaded, RawData)
            raw = loaded
        whole = {"train": raw.x_train, "validation": raw.x_validation, "test": raw.x_test}
        splits = {}
        for name in PARTS:
            x = raw.x_train if whole[name] is None else whole[name]
            assert x is not None
            splits[name] = Split(Rows(x, arrays[f"rows_{name}"]), arrays[f"y_{name}"])
        return Dataset(info, **splits)


def _carved(raw: RawData, settings: job.DatasetSettings) -> Carved:
    try:
        return carve_parts(
            raw, validation=settings.validation, fraction=settings.fraction, split_seed=settings.split_seed
        )
    except BadInput as error:
        raise BadInput(f"dataset {settings.name}: {error}") from error


def _info(raw: RawData, carved: Carved, *, name: str, storage: Storage, reason: str) -> DatasetInfo:
    return DatasetInfo(
        name=name,
        task=raw.task,
        n_outputs=carved.n_outputs,
        input_shape=carved.parts["train"].x.shape[1:],
        n_train=len(carved.parts["train"].y),
        n_validation=len(carved.parts["validation"].y),
        n_test=len(carved.parts["test"].y),
        storage=storage,
        storage_reason=reason,
        mean=carved.mean,
        std=carved.std,
        normalized=storage != "mmap",
        class_labels=carved.class_labels,
        class_names=carved.class_names,
        notes=carved.notes,
        fingerprint=carved.fingerprint,
        source=raw.source,
        licence=raw.licence,
    )


def _of_sequence(raw: RawSequence, settings: job.DatasetSettings, *, device: str) -> Dataset:
    """The data set of a text. Its tokens stay in this process's memory: they are few bytes."""
    try:
        arrays = {"train": training_windows(raw.parts["train"], raw.window, fraction=settings.fraction)}
    except BadInput as error:
        raise BadInput(f"dataset {settings.name}: {error}") from error
    arrays |= {name: windows(raw.parts[name], raw.window) for name in PARTS if name not in arrays}
    n_bytes = sum(x.nbytes + y.nbytes for x, y in arrays.values())
    storage, reason = choose_storage(settings.storage, normalized_bytes=n_bytes, device=device)
    if storage == "mmap":
        storage, reason = "host", "tokens are kept in memory"
    info = DatasetInfo(
        name=settings.name,
        task="language_modelling",
        n_outputs=len(raw.vocabulary),
        input_shape=(len(raw.vocabulary), raw.window),
        n_train=len(arrays["train"][0]),
        n_validation=len(arrays["validation"][0]),
        n_test=len(arrays["test"][0]),
        storage=storage,
        storage_reason=reason,
        mean=(),
        std=(),
        normalized=True,
        class_labels={token: index for index, token in enumerate(raw.vocabulary)},
        class_names=raw.vocabulary,
        notes=raw.notes,
        fingerprint=raw.fingerprint(),
        source=raw.source,
        licence=raw.licence,
        evaluation_streams=raw.evaluation_streams,
    )
    return Dataset(info, **{name: Split(x, y) for name, (x, y) in arrays.items()})


def _arrays(info: DatasetInfo, carved: Carved, *, in_place: bool) -> dict[str, prepared.ArrayToWrite]:
    """What a prepared folder holds: targets, and samples (normalized or as they are) or only their row numbers."""
    arrays = {}
    for name, part in carved.parts.items():
        arrays[f"y_{name}"] = prepared.ArrayToWrite(part.y.shape, part.y.dtype, [part.y])
        if in_place:
            rows = np.arange(len(part.x)) if part.x.rows is None else part.x.rows
            arrays[f"rows_{name}"] = prepared.ArrayToWrite(rows.shape, rows.dtype, [rows])
        elif info.normalized:
            chunks = normalized_chunks(part.x, mean=info.mean, std=info.std)
            arrays[f"x_{name}"] = prepared.ArrayToWrite(part.x.shape, np.dtype(np.float32), chunks)
        else:
            arrays[f"x_{name}"] = prepared.ArrayToWrite(part.x.shape, part.x.dtype, part.x.chunks())
    return arrays


def _in_memory(info: DatasetInfo, carved: Carved) -> Dataset:
    splits = {}
    for name, part in carved.parts.items():
        x, y = info.normalize(part.x[:]), part.y.copy()
        x.setflags(write=False)  # as mapped arrays are, so that a write shows itself with small data too
        y.setflags(write=False)
        splits[name] = Split(x, y)
    return Dataset(info, **splits)


def _class_and_options(settings: job.DatasetSettings, *, folder: Path) -> tuple[Any, BaseModel]:
    try:
        return job.options_of("dataset", settings, folder=folder)
    except ValidationError as error:
        raise BadInput(explain(error, prefix=("dataset",))) from error


def _files_of(source: Source) -> list[tuple[str, int, int]] | None:
    """Path, bytes and time of change of each file of the source, or None where it does not tell its files."""
    if not hasattr(source, "files"):
        return None
    try:
        stats = [(str(path.resolve()), path.stat()) for path in source.files()]
    except OSError as error:
        raise BadInput(f"dataset.path: {error.filename}: cannot be read: {error.strerror}") from error
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _key(identity: Json, *, mapped: bool) -> str:
    return prepared.key_of([identity, "mapped" if mapped else "normalized"])
