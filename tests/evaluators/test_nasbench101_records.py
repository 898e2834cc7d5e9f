"""Record files: checksums, framing, decoding, and what damaged ones say."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from nasbench101_example import (
    CHAIN,
    FIRST_HASH,
    FIVE,
    FOUR,
    double,
    needs_files,
    nested,
    payload,
    tag,
    varint,
    write_records,
)

from nord_hpc.errors import BadInput
from nord_hpc.evaluators.nasbench101 import tfrecord
from nord_hpc.evaluators.nasbench101.records import Evaluation, decode_row, fields, read_rows
from nord_hpc.evaluators.nasbench101.tfrecord import crc32c, crc32c_of_each, masked, read_payloads
from nord_hpc.nasbench101 import ModelSpec

HUGE = (2**40).to_bytes(8, "little")
HUGE_HEADER = HUGE + masked(crc32c(HUGE)).to_bytes(4, "little")


def test_checksums_that_are_known() -> None:
    # From RFC 3720, appendix B.4, and the check value of the catalogue of CRCs.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0
    assert masked(0) == 0xA282EAD8


def test_checksums_of_many_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    payloads = [rng.bytes(length) for length in [*range(12), 1000, 7, 333, 4]]
    assert crc32c_of_each(payloads).tolist() == [crc32c(payload) for payload in payloads]
    assert crc32c_of_each([b"ab"]).tolist() == [crc32c(b"ab")]


@pytest.mark.parametrize("zipped", [False, True])
def test_payloads_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.setattr(tfrecord, "BATCH_RECORDS", 3)
    payloads = [bytes([k]) * k for k in range(10)]
    file = write_records(tmp_path / "records", *payloads)
    if zipped:
        file.write_bytes(gzip.compress(file.read_bytes()))
    assert list(read_payloads(file)) == payloads


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "record 4: the file ends inside it; get the file again"),
        (lambda data: data[:5], "record 0: the file ends inside it; get the file again"),
        (lambda data: data[:-30] + b"?" + data[-29:], "record 4: the checksum of its payload is wrong"),
        (lambda data: data[:3] + b"\x01" + data[4:], "record 0: the checksum of its length is wrong"),
        (lambda data: data + b"\0", "record 5: the file ends inside it"),
        (lambda data: data + HUGE_HEADER, "record 5: 1099511627776 bytes are no record of a benchmark"),
    ],
)  # fmt: skip
def test_damage_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: object, message: str) -> None:
    monkeypatch.setattr(tfrecord, "BATCH_RECORDS", 2)
    file = write_records(tmp_path / "records", *[b"payload of a record, number %d" % k for k in range(5)])
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(BadInput, match=f"^{file}: {message}"):
        list(read_payloads(file))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nothing: cannot be read: No such file or directory"):
        list(read_payloads(tmp_path / "nothing"))
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(write_records(tmp_path / "records", bytes(1000)).read_bytes())[:-9])
    with pytest.raises(BadInput, match=r"cut\.gz: cannot be read: Compressed file ended"):
        list(read_payloads(cut))


def test_a_row_is_decoded() -> None:
    row = decode_row(payload(CHAIN, epochs=12, seconds=50.0, accuracy=0.75))
    assert row[:5] == (CHAIN.module_hash, 12, "010001000", "input,conv3x3-bn-relu,output", 1234567)
    assert row.total_seconds == pytest.approx(55)
    assert row.evaluations[1] == (6.0, 25.0, 0.5, 0.5, 0.5)
    assert row.evaluations[2] == (12.0, 50.0, 0.75 + 0.05, 0.75, 0.75 - 0.01)


def test_unknown_fields_are_skipped() -> None:
    inner = (
        double(11, 1.0)
        + double(4, 0.5)
        + tag(6, 2)
        + varint(3)
        + b"abc"
        + tag(7, 5)
        + bytes(4)
        + tag(99, 0)
        + varint(300)
    )
    inner += tag(8, 3) + tag(1, 1) + bytes(8) + tag(9, 3) + tag(9, 4) + tag(8, 4) + double(2, 7.5)
    # A field of the right number and another wire type is another one, too.
    message = double(2, 9.0) + nested(1, inner) + nested(5, b"whatever") + tag(2, 0) + varint(2**31 - 1)
    row = decode_row(json.dumps(["h", 4, "", "", base64.b64encode(message).decode()]).encode())
    assert row.evaluations == (Evaluation(0.0, 7.5, 0.0, 0.5, 0.0),)
    assert row.n_parameters == 2**31 - 1
    assert [number for number, _, _ in fields(inner)] == [11, 4, 6, 7, 99, 2]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (tag(1, 1) + bytes(7), "the message ends inside field 1"),
        (tag(3, 2) + varint(5) + b"1234", "the message ends inside field 3"),
        (b"\x80", "the message ends inside an integer"),
        (tag(1, 0) + b"\xff" * 11, "the message ends inside an integer"),
        (tag(1, 6), "wire type 6 of field 1 does not exist"),
        (tag(2, 3), "the message ends inside group 2"),
        (tag(2, 3) + tag(3, 4), "group 3 ends without having begun"),
    ],
)
def test_damaged_messages(message: bytes, error: str) -> None:
    with pytest.raises(ValueError, match=f"^{error}$"):
        list(fields(message))


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (b"no JSON", "Expecting value"),
        (b"[1, 2]", "not enough values to unpack"),
        (b'["h", 4, "01", "input", "!!"]', "it holds no evaluation"),
        (b'["h", 4, "01", "input", "abc"]', "Incorrect padding"),
        (b'["h", 4, "01", "input", 5]', "argument should be bytes"),
    ],
)
def test_other_payloads_are_named(tmp_path: Path, row: bytes, error: str) -> None:
    file = write_records(tmp_path / "records", payload(CHAIN), row)
    with pytest.raises(BadInput, match=f"records: record 1: is no row of NAS-Bench-101: .*{error}"):
        list(read_rows(file))


@needs_files
def test_every_row_of_a_real_file() -> None:
    """Checksums are checked on the way; all hashes are computed anew."""
    rows = list(read_rows(FOUR))
    assert len(rows) == 1092
    assert [ModelSpec.from_text(row.adjacency, row.operations).module_hash for row in rows] == [
        row.module_hash for row in rows
    ]
    first = rows[0]
    assert (first.module_hash, first.epochs, first.adjacency) == (FIRST_HASH, 36, "0110001100010000")
    assert first.operations == "input,conv1x1-bn-relu,conv3x3-bn-relu,output"
    assert (first.n_parameters, round(first.total_seconds, 3)) == (3_468_426, 746.166)
    assert len(first.evaluations) == 3
    assert [round(value, 6) for value in first.evaluations[2]] == [36.0, 668.590027, 0.997796, 0.917468, 0.909355]


@needs_files
def test_every_row_of_a_real_gzipped_file() -> None:
    rows = list(read_rows(FIVE))
    assert len({row.module_hash for row in rows}) == len(rows) == 2532
    assert {row.epochs for row in rows} == {4}
    assert all(0 < row.evaluations[-1].validation_accuracy < 1 for row in rows)
