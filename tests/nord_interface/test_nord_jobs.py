"""The scripts of jobs/, run as a person runs them, with small settings."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: object, code: int = 0, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / script), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_descriptors(tmp_path: Path) -> None:
    output = run("nord_descriptor.py", tmp_path / "pictures")
    # 3*5*9+5, 5*10*25+10, 10*9 features to 10 classes; and with 10*20*9+20 and the projection 10*20, 20 to 10.
    assert "chain: 2310 parameters, output (2, 10)" in output
    assert "branches: 3630 parameters, output (2, 10)" in output
    for name in ("chain", "branches"):
        assert (tmp_path / "pictures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_convolutions_on_the_accelerometer_data(data_folder: Path) -> None:
    output = run(
        "nord_local_evaluator_conv1d.py", "--epochs", 2, "--data-percentage", 0.1, NORD_HPC_DATA=str(data_folder)
    )
    assert "epoch 2/2: training loss " in output
    values = dict(pair.split() for pair in output.split("validation metrics: ")[1].splitlines()[0].split(", "))
    assert set(values) == {"accuracy", "balanced_accuracy", "macro_f1"}
    assert float(values["accuracy"]) > 0.3


def test_environment_alone() -> None:
    output = run("nord_environment.py", "--dataset", "digits", "--epochs", 1)
    assert "1 ranks: loss 2." in output
    assert "dataset 'digit' is not known: did you mean digits?" in run(
        "nord_environment.py", "--dataset", "digit", code=1
    )


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes((0, 0, 8, values.ndim)) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Images in the form of MNIST: class c has a bright square at the c-th place."""
    rng = np.random.default_rng(1)
    for part, n, suffix in (("train", 400, ""), ("t10k", 100, ".gz")):
        labels = np.arange(n) % 10
        images = rng.integers(0, 60, (n, 28, 28))
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 4)
            image[9 * row : 9 * row + 6, 7 * column : 7 * column + 6] += 180
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", labels)
    return tmp_path


def test_custom_data_set(mnist: Path) -> None:
    output = run("custom_dataset_mnist.py", mnist, "--epochs", 5, "--split", "test")
    lines = output.splitlines()
    assert lines[0] == "['cifar10', 'fashion_mnist', 'digits', 'activity_recognition']"
    assert lines[1] == "['cifar10', 'fashion_mnist', 'digits', 'activity_recognition', 'MNIST']"
    assert lines[6].startswith("epoch 5/5: training loss ")
    assert float(lines[7].split("accuracy ")[1].split(",")[0]) > 0.5
    missing = run("custom_dataset_mnist.py", mnist / "nowhere", code=1)
    assert "nowhere has no train-images-idx3-ubyte (nor train-images-idx3-ubyte.gz); put the four IDX files" in missing
