"""Rows of a NAS-Bench-101 record file, decoded: JSON around a protocol buffer; framing and use are left to others."""

from __future__ import annotations

import binascii
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nord_hpc.errors import BadInput
from nord_hpc.evaluators.nasbench101.tfrecord import read_payloads

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)
_DOUBLE = struct.Struct("<d")
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}


class Evaluation(NamedTuple):
    """A network at one moment of its training; accuracies from 0 to 1."""

    epoch: float
    training_seconds: float
    train_accuracy: float
    validation_accuracy: float
    test_accuracy: float


class Row(NamedTuple):
    """One training of one cell.

    Attributes:
        module_hash: of the cell.
        epochs: the budget.
        adjacency: the cell's matrix as text, row by row.
        operations: labels with commas between them.
        n_parameters: trainable.
        total_seconds: training and all evaluations.
        evaluations: at the begin, on the way, and at the end of training.
    """

    module_hash: str
    epochs: int
    adjacency: str
    operations: str
    n_parameters: int
    total_seconds: float
    evaluations: tuple[Evaluation, ...]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a record file in their order.

    Raises:
        BadInput: the file cannot be read or is damaged, or holds something else; names the record, from 0.
    """
    for number, payload in enumerate(read_payloads(path)):
        try:
            yield decode_row(payload)
        except (ValueError, TypeError, IndexError, struct.error) as error:
            raise BadInput(f"{path}: record {number}: is no row of NAS-Bench-101: {error}") from error


def decode_row(payload: bytes) -> Row:
    """A row from its payload.

    Raises:
        ValueError, TypeError, IndexError, struct.error: it is something else.
    """
    module_hash, epochs, adjacency, operations, metrics = json.loads(payload)
    n_parameters, total_seconds, evaluations = _decode_metrics(binascii.a2b_base64(metrics))
    return Row(module_hash, epochs, adjacency, operations, n_parameters, total_seconds, evaluations)


def _decode_metrics(message: bytes) -> tuple[int, float, tuple[Evaluation, ...]]:
    n_parameters, total_seconds = 0, 0.0
    evaluations = []
    for number, wire_type, value in fields(message):
        if number == 1 and wire_type == _BYTES:
            assert isinstance(value, bytes)
            evaluations.append(_decode_evaluation(value))
        elif number == 2 and wire_type == _VARINT:
            assert isinstance(value, int)
            n_parameters = value
        elif number == 3 and wire_type == _FIXED64:
            assert isinstance(value, bytes)
            (total_seconds,) = _DOUBLE.unpack(value)
    if not evaluations:
        raise ValueError("it holds no evaluation")
    return n_parameters, total_seconds, tuple(evaluations)


def _decode_evaluation(message: bytes) -> Evaluation:
    values = [0.0] * 5
    for number, wire_type, value in fields(message):
        if 1 <= number <= 5 and wire_type == _FIXED64:
            assert isinstance(value, bytes)
            (values[number - 1],) = _DOUBLE.unpack(value)
    return Evaluation(*values)


def fields(message: bytes) -> Iterator[tuple[int, int, bytes | int]]:
    """Number, wire type and raw value of each field of a protocol buffer, whatever they mean; groups are left out.

    Raises:
        ValueError: the message ends inside a field, or has a wire type that does not exist.
    """
    at, end = 0, len(message)
    open_groups: list[int] = []
    while at < end:
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        value: bytes | int | None = None
        if wire_type == _VARINT:
            value, at = _varint(message, at)
        elif wire_type == _GROUP:
            open_groups.append(number)
        elif wire_type == _END_GROUP:
            if not open_groups or open_groups.pop() != number:
                raise ValueError(f"group {number} ends without having begun")
        elif wire_type == _BYTES or wire_type in _FIXED_SIZES:
            if wire_type == _BYTES:
                size, at = _varint(message, at)
            else:
                size = _FIXED_SIZES[wire_type]
            value = message[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire_type} of field {number} does not exist")
        if at > end:
            raise ValueError(f"the message ends inside field {number}")
        if value is not None and not open_groups:
            yield number, wire_type, value
    if open_groups:
        raise ValueError(f"the message ends inside group {open_groups[-1]}")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """An integer, and where it ends."""
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("the message ends inside an integer")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
