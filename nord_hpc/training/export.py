"""Trained networks as files that others read without nord_hpc: torch.export programs, ONNX, safetensors; and back.

What stands in a file's card, and where the network comes from, is left to others.

An exported network takes what the data's source gives, not normalized: the first thing it does is to normalize, with
the same bits as `nord_hpc.datasets.normalization`. One for sequences takes the windows' tokens and the states that its
recurrent layers begin with, and gives the states that they end with, so that a text can be read window by window.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import nn

from nord_hpc.errors import BadInput
from nord_hpc.interfaces import Control, DataParallel
from nord_hpc.training.data import scored_part
from nord_hpc.training.scoring import score
from nord_hpc.training.weights import write_whole

Format = Literal["torch", "onnx", "safetensors"]

BATCH = 2
"""Samples of the batch that is traced; in the file the number of samples is free."""

TOLERANCE = 1e-5
"""Absolute and relative: how far outputs of onnxruntime may be from torch's."""


class Runner(Protocol):
    """An exported network, loaded from its file."""

    def __call__(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs, and behind them the new states of recurrent layers."""


@dataclass(frozen=True, slots=True)
class Interface:
    """What goes into an exported network and what comes out; N is the number of samples, which is free.

    Attributes:
        shape: of one sample.
        tokens: whether samples are indices of tokens, int64, and not numbers, float32.
        states: shapes of the states, for one sample each; two for each recurrent layer.
    """

    shape: tuple[int, ...]
    tokens: bool
    states: tuple[tuple[int, ...], ...]

    @property
    def input_names(self) -> list[str]:
        return ["x", *(f"state{index}" for index in range(len(self.states)))]

    @property
    def output_names(self) -> list[str]:
        return ["outputs", *(f"new_state{index}" for index in range(len(self.states)))]

    def example(self) -> tuple[torch.Tensor, ...]:
        """Inputs for `BATCH` samples."""
        kind = torch.int64 if self.tokens else torch.float32
        x_NC = torch.zeros((BATCH, *self.shape), dtype=kind)
        return x_NC, *(torch.zeros((BATCH, *shape)) for shape in self.states)

    def initial_states(self, n: int) -> tuple[torch.Tensor, ...]:
        """What a text begins with."""
        return tuple(torch.zeros((n, *shape)) for shape in self.states)


class Exported(nn.Module):
    """A trained network with what stands around it in its file; see the module's docstring.

    Args:
        network: on the CPU, trained.
        mean, std: of each channel, in the units of the source; empty where nothing is normalized.
    """

    def __init__(self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float], dims: int) -> None:
        super().__init__()
        self.network = network
        self._recurrent: list[Any] = [
            module for module in network.modules() if hasattr(module, "initial") and hasattr(module, "final")
        ]
        shape = (1, -1) + (1,) * (dims - 1)
        self.channel_mean: torch.Tensor
        self.channel_std: torch.Tensor
        self.normalizes = bool(mean)
        self.register_buffer("channel_mean", torch.tensor(mean, dtype=torch.float64).reshape(shape))
        self.register_buffer("channel_std", torch.tensor(std, dtype=torch.float64).reshape(shape))

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.normalizes:
            x = ((x.double() - self.channel_mean) / self.channel_std).float()
        for index, layer in enumerate(self._recurrent):
            layer.initial = states[2 * index], states[2 * index + 1]
        outputs = self.network(x)
        new = []
        for layer in self._recurrent:
            new += list(layer.final)
            layer.initial = layer.final = None
        return outputs, *new

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple((layer.hidden_size,) for layer in self._recurrent for _ in range(2))


def prepare(network: nn.Module, *, info: Any) -> tuple[Exported, Interface]:
    """What is exported, and its inputs and outputs.

    Args:
        network: trained; it is copied.
        info: a `nord_hpc.datasets.dataset.DatasetInfo`.
    """
    tokens = info.task == "language_modelling"
    shape = tuple(info.input_shape[1:]) if tokens else tuple(info.input_shape)
    exported = Exported(copy.deepcopy(network).cpu(), mean=info.mean, std=info.std, dims=len(info.input_shape))
    return exported.eval(), Interface(shape, tokens, exported.state_shapes)


def write(exported: Exported, interface: Interface, path: Path, *, kind: Format, about: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all.

    Args:
        about: kept in the file where the format has a place for it, as JSON.

    Raises:
        BadInput: a package is missing, or a layer of the user's own cannot be traced.
    """
    if kind == "safetensors":
        tensors = {name: tensor.contiguous() for name, tensor in exported.network.state_dict().items()}
        if exported.normalizes:
            tensors |= {"channel_mean": exported.channel_mean, "channel_std": exported.channel_std}
        content = safetensors.torch.save(tensors, metadata={"nord_hpc": json.dumps(about, sort_keys=True)})
        write_whole(path, content)
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder, _quiet():
        file = Path(folder) / "file.pt2"  # torch warns of other endings
        if kind == "torch":
            torch.export.save(_traced(exported, interface), file, extra_files={"nord_hpc.json": json.dumps(about)})
        else:
            _write_onnx(_traced(exported, interface), interface, file, about=about)
        write_whole(path, file.read_bytes())


def load(path: Path, *, kind: Literal["torch", "onnx"]) -> Runner:
    """The network of a file, read as others read it: by torch or onnxruntime alone."""
    if kind == "torch":
        with _quiet(), path.open("rb") as file:
            module = torch.export.load(file).module()

        def run_torch(x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with torch.no_grad():
                outputs: tuple[torch.Tensor, ...] = module(x, *states)
            return outputs

        return run_torch
    return _onnx_runner(path)


def difference(exported: Exported, runner: Runner, interface: Interface, x_NC: npt.NDArray[Any]) -> float:
    """How far a loaded network's outputs are from those of the one that was exported, as a share of what is allowed.

    Args:
        x_NC: samples as the source gives them.
    """
    x = torch.from_numpy(np.array(x_NC))
    x = x.long() if interface.tokens else x.float()
    states = interface.initial_states(len(x))
    with torch.no_grad():
        wanted = exported(x, *states)
    given = runner(x, *states)
    shares = [((a - b).abs() / (TOLERANCE + TOLERANCE * b.abs())).max() for a, b in zip(given, wanted, strict=True)]
    return float(torch.stack(shares).max())


class Replay(nn.Module):
    """A loaded network as loops of nord_hpc run one: states are carried by whoever sets `initial` and reads `final`."""

    def __init__(self, runner: Runner, interface: Interface) -> None:
        super().__init__()
        self._runner = runner
        self._interface = interface
        self.initial: tuple[torch.Tensor, ...] | None = None
        self.final: tuple[torch.Tensor, ...] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._interface.tokens:
            x = x.long()
        states = self.initial if self.initial is not None else self._interface.initial_states(len(x))
        outputs, *new = self._runner(x, *states)
        self.final = tuple(new)
        return outputs


def score_file(
    runner: Runner,
    interface: Interface,
    split: Any,
    *,
    info: Any,
    metrics: Sequence[Any],
    batch_size: int,
    data_parallel: DataParallel,
    control: Control,
) -> dict[str, float]:
    """The metrics of a loaded network on a part of the data as their source gives them.

    Args:
        split: not normalized; tokens for language modelling.
        info: of the data set, `normalize` of which does nothing.
    """
    device = torch.device("cpu")
    return score(
        Replay(runner, interface),
        scored_part(split, info, device=device),
        metrics=metrics,
        batch_size=batch_size,
        autocast=nullcontext(),
        data_parallel=data_parallel,
        control=control,
        when="from the exported file",
    )


def check_packages(kind: Format) -> None:
    """Refuse a format whose packages are not there.

    Raises:
        BadInput: names the extra to install.
    """
    if kind != "onnx":
        return
    try:
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped]  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BadInput(f"--format onnx: needs {error.name}; install it with: pip install 'nord_hpc[export]'") from error


def _traced(exported: Exported, interface: Interface) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad():
            return torch.export.export(exported, interface.example(), dynamic_shapes=_free_samples(interface))
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise BadInput(
            f"the network cannot be traced by torch.export ({type(error).__name__}: {text}); export it with "
            f"--format safetensors"
        ) from error


def _free_samples(interface: Interface) -> dict[str, Any]:
    """That the number of samples is free, as torch.export takes it."""
    samples = torch.export.Dim("N", min=1)
    states = {"states": tuple({0: samples} for _ in interface.states)} if interface.states else {}
    return {"x": {0: samples}, **states}


def _write_onnx(
    program: torch.export.ExportedProgram, interface: Interface, file: Path, *, about: Mapping[str, Any]
) -> None:
    import onnx

    made = torch.onnx.export(
        program,
        input_names=interface.input_names,
        output_names=interface.output_names,
        dynamic_shapes=_free_samples(interface),
        dynamo=True,
        verbose=False,
    )
    assert made is not None
    model = made.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = "nord_hpc", json.dumps(about)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, file)


def _onnx_runner(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run_onnx(x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        arrays: list[npt.NDArray[Any]] = [np.ascontiguousarray(value) for value in (x, *states)]
        return tuple(torch.from_numpy(value) for value in session.run(None, dict(zip(names, arrays, strict=True))))

    return run_onnx


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters of torch warn of their own use of what they depend on, which says nothing to the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
