"""Record files of NAS-Bench-101 for the tests: where the real ones are, and a writer of small ones."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from nord_hpc.evaluators.nasbench101.tfrecord import frame
from nord_hpc.nasbench101 import CONV1X1, CONV3X3, INPUT, MAXPOOL3X3, OUTPUT, ModelSpec

ROOT = Path(__file__).resolve().parents[1]
FOLDER = (ROOT / "../shared/data/nasbench101").resolve()
FOUR = FOLDER / "ecnas_4V9E.tfrecord"
"""All 91 cells of up to 4 vertices, with budgets 4, 12, 36 and 108, three times each."""

FIVE = FOLDER / "ecnas_5V9E_4epochs.tfrecord.gz"
"""All 2,532 cells of up to 5 vertices, 4 epochs, once."""

SAMPLE = FOLDER / "nasbench101_sample30001.csv.gz"
needs_files = pytest.mark.skipif(not FOUR.exists(), reason=f"there are no record files in {FOLDER}")

FIRST_HASH = "5529e1779433733d1145e20de5d8604e"
BEST_HASH = "ea9270f536a1f1094f446246dad4fe89"

CHAIN = ModelSpec([[0, 1, 0], [0, 0, 1], [0, 0, 0]], [INPUT, CONV3X3, OUTPUT])
POOLED = ModelSpec([[0, 1, 1], [0, 0, 1], [0, 0, 0]], [INPUT, MAXPOOL3X3, OUTPUT])

DOCUMENTED_HASH = "28cfc7874f6d200472e1a9dcd8650aa0"
DOCUMENTED = ModelSpec.from_text(
    "0111100000000100000010000001000001000000010000000",
    ",".join([INPUT, CONV3X3, CONV1X1, MAXPOOL3X3, CONV3X3, CONV3X3, OUTPUT]),
)
"""The cell of the benchmark's documentation: 2,694,282 parameters."""


def matrix_of(n: int, edges: str) -> list[list[int]]:
    """A matrix of n vertices with edges such as "0-1 1-2"."""
    matrix = [[0] * n for _ in range(n)]
    for edge in edges.split():
        source, target = edge.split("-")
        matrix[int(source)][int(target)] = 1
    return matrix


def tag(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


def varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def double(number: int, value: float) -> bytes:
    return tag(number, 1) + struct.pack("<d", value)


def nested(number: int, message: bytes) -> bytes:
    return tag(number, 2) + varint(len(message)) + message


def evaluation(*values: float) -> bytes:
    return b"".join(double(number, value) for number, value in enumerate(values, 1))


def payload(
    spec: ModelSpec,
    *,
    epochs: int = 108,
    seconds: float = 1000.0,
    accuracy: float = 0.9,
    n_parameters: int = 1234567,
    **replaced: Any,
) -> bytes:
    """A row whose test accuracy is 0.01 below its validation accuracy, and its train accuracy 0.05 above."""
    message = nested(1, evaluation(0, 0, 0.1, 0.1, 0.1))
    message += nested(1, evaluation(epochs / 2, seconds / 2, 0.5, 0.5, 0.5))
    message += nested(1, evaluation(epochs, seconds, accuracy + 0.05, accuracy, accuracy - 0.01))
    message += tag(2, 0) + varint(n_parameters) + double(3, seconds * 1.1)
    row = {
        "module_hash": spec.module_hash,
        "epochs": epochs,
        "adjacency": "".join(str(bit) for bits in spec.matrix for bit in bits),
        "operations": ",".join(spec.operations),
        "metrics": base64.encodebytes(message).decode(),
    }
    return json.dumps(list({**row, **replaced}.values())).encode()


def write_records(path: Path, *payloads: bytes) -> Path:
    path.write_bytes(b"".join(map(frame, payloads)))
    return path
