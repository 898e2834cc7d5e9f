"""Exported networks: files that load without nord_hpc, give the report's figures to the last digit, and have a card.

Three networks: a chain, one with several joined inputs, and a recurrent one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from nord_hpc import job as jobs
from nord_hpc.cli import export, retrain, retrain_life, wiring
from nord_hpc.cluster import parts
from nord_hpc.datasets.dataset import open_dataset
from nord_hpc.errors import BadInput, StoreError
from nord_hpc.store.run_folder import RunFolder

FIXED = '''
from pydantic import BaseModel

from nord_hpc.descriptor import NeuralDescriptor


class Fixed:
    """A space of one network."""

    class Options(BaseModel):
        joined: bool

    def __init__(self, options):
        self._joined = options.joined

    def sample(self, rng):
        return 0

    def mutate(self, genotype, rng):
        return 0

    def crossover(self, first, second, rng):
        return 0

    def contains(self, genotype):
        return genotype == 0

    def to_descriptor(self, genotype):
        d = NeuralDescriptor()
        d.add_layer_sequential("Conv2d", {"out_channels": 6, "kernel_size": 3, "padding": 1}, name="a")
        d.add_layer_sequential("BatchNorm2d", {}, name="b")
        d.add_layer_sequential("ReLU", {}, name="c")
        if self._joined:
            d.add_layer("Conv2d", {"out_channels": 4, "kernel_size": 3, "padding": 1}, name="d")
            d.add_layer("MaxPool2d", {"kernel_size": 2}, name="e")
            d.add_layer("Conv2d", {"out_channels": 4, "kernel_size": 1}, name="f", join="concat")
            d.connect_layers("a", "d")
            d.connect_layers("c", "e")
            d.connect_layers("d", "f")
            d.connect_layers("e", "f")
            d.connect_layers("b", "f")
            d.add_layer("Conv2d", {"out_channels": 4, "kernel_size": 1}, name="g", join="add")
            d.connect_layers("f", "g")
            d.connect_layers("e", "g")
        return d
'''

DIGITS: dict[str, Any] = {
    "dataset": {"name": "digits", "fraction": 0.4},
    "training": {"epochs": 1, "batch_size": 32, "optimizer": {"name": "adam", "lr": 0.01}},
}
JOBS: dict[str, dict[str, Any]] = {
    "chain": {**DIGITS, "space": {"name": "fixed.py:Fixed", "joined": False}},
    "joined": {**DIGITS, "space": {"name": "fixed.py:Fixed", "joined": True}},
    "recurrent": {
        "dataset": {"name": "text", "path": "text.txt", "unit": "characters", "bptt": 4, "evaluation_streams": 1},
        "space": {"name": "recurrent_cell", "base": 2, "width": 6},
        "training": {"epochs": 1, "batch_size": 8, "optimizer": {"name": "adam", "lr": 0.01}},
    },
}
NETWORKS = list(JOBS)
FILES = {"torch": "net.pt2", "onnx": "net.onnx"}


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Finished searches of one or two trials, by network."""
    folder = tmp_path_factory.mktemp("searches")
    (folder / "fixed.py").write_text(FIXED)
    words = np.random.Generator(np.random.PCG64(0)).choice(["the ", "cat ", "sat ", "on ", "a ", "mat.\n"], 500)
    (folder / "text.txt").write_text("".join(words))
    common = {"strategy": {"name": "random_search"}, "budget": {"trials": 2}, "checkpoint": {"keep_weights": 1}}
    runs = {}
    for name, job in JOBS.items():
        loaded = jobs.from_mapping({"name": name, **common, **job}, folder=folder)
        runs[name] = parts.create_run_folder(folder / f"run-{name}", loaded)
        assert wiring.run_inline(runs[name], on_tick=lambda: None) == wiring.DONE
    return runs


READ_DIGITS = """
import sys
sys.modules["nord_hpc"] = None  # an import of it fails
import numpy, torch
x = numpy.load("x.npy")
{torch}
{use}
outputs = numpy.asarray(outputs)
print(repr(float((outputs.argmax(1) == numpy.load("y.npy")).sum()) / len(x)))
"""

READ_TEXT = """
import sys
sys.modules["nord_hpc"] = None
import numpy, torch
windows, targets = numpy.load("x.npy"), numpy.load("y.npy")
states = [numpy.zeros((1, 6), numpy.float32)] * 2
hits = count = 0
for x, y in zip(windows, targets):
    x = x[None]
    state0, state1 = states
    {torch}
    {use}
    hits += ((numpy.asarray(outputs).argmax(1)[0] == y) & (y >= 0)).sum()
    count += (y >= 0).sum()
    states = [numpy.asarray(new_state0), numpy.asarray(new_state1)]
print(repr(float(hits) / float(count)))
"""


def read_by_its_card(folder: Path, file: str, run: RunFolder, *, recurrent: bool) -> float:
    """The accuracy that a stranger finds who follows the card's listing, on the test part as its source gives it."""
    job = run.job()
    data = open_dataset(job.dataset.model_copy(update={"storage": "mmap"}), folder=job.folder)
    x = data.test.x[0 : data.info.n_test]
    np.save(folder / "x.npy", x.astype(np.int64 if recurrent else np.float32))
    np.save(folder / "y.npy", data.test.y)
    listing = re.findall(r"```python\n(.*?)```", (folder / f"{file}.md").read_text(), re.S)[0]
    is_torch = file.endswith(".pt2")
    names = ("x", "state0", "state1") if recurrent else ("x",)
    tensors = "; ".join(f"{name} = torch.from_numpy({name})" for name in names) if is_torch else ""
    if is_torch:
        listing = listing.replace("outputs", "with torch.no_grad(): outputs", 1)
    code = READ_TEXT if recurrent else READ_DIGITS
    use = listing.strip().replace("\n", "\n    ") if recurrent else listing
    program = code.format(torch=tensors, use=use)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


FAST = [("chain", "torch"), ("recurrent", "torch"), ("joined", "onnx")]
ALL = [
    pytest.param(network, kind, marks=() if (network, kind) in FAST else pytest.mark.slow)
    for network in NETWORKS
    for kind in FILES
]


@pytest.mark.parametrize(("network", "kind"), ALL)
def test_the_file_gives_the_figures_of_the_report(
    searches: dict[str, RunFolder], network: str, kind: str, tmp_path: Path
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="needs pip install 'nord_hpc[export]'")
    run = searches[network]
    record = export.write(export.find(run.path, "best"), tmp_path / FILES[kind], kind)  # type: ignore[arg-type]
    test = run.history().test
    assert test is not None
    reported = test["metrics"]["accuracy"]
    assert record["scored"]["test"]["accuracy"] == reported
    assert record["as_reported"]["test accuracy"] and record["as_reported"]["validation accuracy"]
    assert 0 < reported < 1
    if kind == "torch":  # the same kernels on the same bits
        assert record["difference"] == 0.0
        assert all(record["as_reported"].values())
    else:
        assert 0 < record["difference"] < 1
    assert len(record["states"]) == (2 if network == "recurrent" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_stranger_finds_the_same_accuracy_without_nord_hpc(
    searches: dict[str, RunFolder], network: str, kind: str, tmp_path: Path
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="needs pip install 'nord_hpc[export]'")
    run, file = searches[network], FILES[kind]
    export.write(export.find(run.path, "best"), tmp_path / file, kind)  # type: ignore[arg-type]
    test = run.history().test
    assert test is not None
    found = read_by_its_card(tmp_path, file, run, recurrent=network == "recurrent")
    assert found == test["metrics"]["accuracy"]


def test_safetensors_tell_how_to_build_the_network(searches: dict[str, RunFolder], tmp_path: Path) -> None:
    """From the file alone, with torch.nn alone: the layers of the chain one after the other."""
    run = searches["chain"]
    out = tmp_path / "net.safetensors"
    record = export.write(export.find(run.path, "best"), out, "safetensors")
    assert record["scored"] == {} and record["as_reported"] is None
    with safe_open(out, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["nord_hpc"])
    layers = []
    for index, layer in enumerate(about["layers"]):
        assert [way["source"] for way in layer["inputs"]] == ([index - 1] if index else [])
        module, _, name = layer["factory"].partition(":")
        assert module == "torch.nn"
        layers.append(getattr(torch.nn, name)(**layer["parameters"]))
        own = {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith(f"layer{index}.")}
        layers[-1].load_state_dict(own)
        if layer["flatten"]:
            layers.insert(-1, torch.nn.Flatten())
    network = torch.nn.Sequential(*layers).eval()
    job = run.job()
    data = open_dataset(job.dataset.model_copy(update={"storage": "mmap"}), folder=job.folder)
    x = torch.from_numpy(np.asarray(data.test.x[0 : data.info.n_test], dtype=np.float64))
    x = ((x - tensors["channel_mean"]) / tensors["channel_std"]).float()
    with torch.no_grad():
        hits = int((network(x).argmax(1) == torch.from_numpy(np.array(data.test.y))).sum())
    test = run.history().test
    assert test is not None and hits / data.info.n_test == test["metrics"]["accuracy"]


def test_the_card_says_all_that_a_user_must_know(searches: dict[str, RunFolder], tmp_path: Path) -> None:
    run = searches["joined"]
    record = export.write(export.find(run.path, "best"), tmp_path / "net.pt2", "torch")
    text = (tmp_path / "net.pt2.md").read_text()
    assert record["card"] == str(tmp_path / "net.pt2.md")
    history, job = run.history(), run.job()
    trial = history.entries[record["trial"]].trial
    for part in (
        "licence: scikit-learn: BSD-3-Clause; the data: CC BY 4.0",
        "460 samples for training, 288 for validation, 359 for test",
        "split seed 0",
        f"seed {trial.seed} (of the search: 0)",
        f"torch {torch.__version__}",
        history.history_sha256,
        trial.descriptor_hash,
        record["sha256"],
        "`x`: float32 [N, 1, 8, 8], the numbers of the data's source, **not normalized**",
        "The file normalizes its input itself",
        repr(record["scored"]["test"]["accuracy"]),
        "the best of 2 completed trials",
        "concat of ",
        "0 '0', 1 '1', 2 '2'",
        job.to_yaml(),
    ):
        assert part in text, part


def test_a_retraining_is_exported_too(searches: dict[str, RunFolder], tmp_path: Path) -> None:
    source = searches["chain"]
    folder = retrain._create(source, "best", ["training.epochs=2"], n_ranks=1, out=tmp_path / "again")
    with pytest.raises(BadInput, match=r"is not finished; go on with: nord-hpc retrain .*again"):
        export.find(folder.path, "best")
    assert retrain_life.run_inline(folder, on_tick=lambda: None) == retrain_life.FINISHED
    record = export.write(export.find(folder.path, "best"), tmp_path / "net.pt2", "torch")
    result = folder.result()
    assert result is not None
    assert record["scored"]["test"]["accuracy"] == result["test"]["accuracy"]
    assert all(record["as_reported"].values())
    assert f"of {source.path.resolve()}, trained in full" in (tmp_path / "net.pt2.md").read_text()
    with pytest.raises(BadInput, match=r"--trial 7: .* is a retraining of trial \d; leave --trial away"):
        export.find(folder.path, "7")


def test_what_cannot_be_exported_is_refused(searches: dict[str, RunFolder], tmp_path: Path) -> None:
    run = searches["chain"]
    [kept] = [int(file.stem.partition("-")[2]) for file in run.weights.glob("trial-*.safetensors")]
    with pytest.raises(BadInput, match=rf"its weights were not kept; export one of {kept}, or train it with: nord-hpc"):
        export.find(run.path, str(1 - kept))
    with pytest.raises(BadInput, match=r"--trial 9: .* has no such trial; its trials are 0 to 1"):
        export.find(run.path, "9")
    with pytest.raises(BadInput, match="set torch, onnx or safetensors"):
        export.export(run.path, tmp_path / "a.h5", kind="keras")
    with pytest.raises(BadInput, match=r"files that end in \.pt2; set .*net\.pt2"):
        export.export(run.path, tmp_path / "net.onnx")
    with pytest.raises(BadInput, match="there is no folder"):
        export.export(run.path, tmp_path / "absent" / "net.pt2")


def test_a_table_has_no_networks(tmp_path: Path) -> None:
    job = {
        "name": "formula",
        "space": {"name": "conv_graph"},
        "strategy": {"name": "random_search"},
        "evaluator": {"name": "synthetic"},
        "budget": {"trials": 1},
    }
    run = parts.create_run_folder(tmp_path / "run", jobs.from_mapping(job, folder=tmp_path))
    assert wiring.run_inline(run, on_tick=lambda: None) == wiring.DONE
    with pytest.raises(BadInput, match=r"evaluator synthetic keeps no networks; train one with"):
        export.write(export.find(run.path, "best"), tmp_path / "net.pt2", "torch")
    assert not (tmp_path / "net.pt2").exists()


def test_a_file_that_gives_something_else_is_not_left(
    searches: dict[str, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nord_hpc.training import export as exporting

    load = exporting.load

    def wrong(*arguments: Any, **options: Any) -> Any:
        runner = load(*arguments, **options)
        return lambda *inputs: tuple(value + 1e-3 for value in runner(*inputs))

    monkeypatch.setattr(exporting, "load", wrong)
    with pytest.raises(StoreError, match=r"other outputs than the network, by .*, more than 1e-05; it is removed"):
        export.write(export.find(searches["chain"].path, "best"), tmp_path / "net.pt2", "torch")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(
    searches: dict[str, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        BadInput, match=r"--format onnx: needs onnx\w*; install it with: pip install 'nord_hpc\[export\]'"
    ):
        export.write(export.find(searches["chain"].path, "best"), tmp_path / "net.onnx", "onnx")
