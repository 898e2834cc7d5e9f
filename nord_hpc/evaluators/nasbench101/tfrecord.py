"""The framing of TFRecord files, plain or gzipped: payloads, every checksum checked; their meaning is left to others.

A record is a uint64 length, the masked CRC-32C of these 8 bytes, the payload, and its masked CRC-32C, all little
endian. Checksums of payloads are computed for many records at once.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from nord_hpc.errors import BadInput

_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_GZIP_MAGIC = b"\x1f\x8b"

BATCH_RECORDS = 2048
"""Payloads checked at once."""

BATCH_BYTES = 1 << 24
"""Payloads checked at once hold no more than about this."""

LARGEST_PAYLOAD = 1 << 28
"""No record of a benchmark is as large; a larger length would only fill the memory."""


def _make_table() -> npt.NDArray[np.uint32]:
    """What two bytes do to the checksum's register, [65536]."""
    table = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(16):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


_TABLE = _make_table()
_TABLE_LIST: list[int] = _TABLE.tolist()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of a few bytes."""
    register = 0xFFFFFFFF
    even = len(data) & ~1
    for at in range(0, even, 2):
        register = _TABLE_LIST[(register ^ (data[at] | data[at + 1] << 8)) & 0xFFFF] ^ (register >> 16)
    for byte in data[even:]:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (_POLYNOMIAL if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def crc32c_of_each(payloads: Sequence[bytes]) -> npt.NDArray[np.uint32]:
    """CRC-32C of each of many byte strings, [N]."""
    # The register starts as ones, which is the same as zeros and the first four bytes inverted; and zeros in front of
    # a message leave a register of zeros as it is. So messages of any lengths make a rectangle.
    short = [index for index, payload in enumerate(payloads) if len(payload) < 4]
    width = max(map(len, payloads), default=0)
    width = max(4, width + (width & 1))
    joined = b"".join([payload.rjust(width, b"\0") for payload in payloads])
    bytes_NB = np.frombuffer(bytearray(joined), dtype=np.uint8).reshape(len(payloads), width)
    start_N = width - np.maximum(4, np.array([len(payload) for payload in payloads], dtype=np.int64))
    rows = np.arange(len(payloads))
    for offset in range(4):
        bytes_NB[rows, start_N + offset] ^= 0xFF
    words_WN = np.ascontiguousarray(bytes_NB.view("<u2").T)
    register_N = np.zeros(len(payloads), dtype=np.uint32)
    for word_N in words_WN:
        register_N = _TABLE[register_N.astype(np.uint16) ^ word_N] ^ (register_N >> np.uint32(16))
    register_N ^= np.uint32(0xFFFFFFFF)
    for index in short:
        register_N[index] = crc32c(payloads[index])
    return register_N


def masked(crc: int) -> int:
    """A checksum as these files store it."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """The record of a payload, as it stands in a file."""
    length = len(payload).to_bytes(8, "little")
    checks = [masked(crc32c(part)).to_bytes(4, "little") for part in (length, payload)]
    return length + checks[0] + payload + checks[1]


def read_payloads(path: Path) -> Iterator[bytes]:
    """The payloads of a file in their order, each after its checksums were found right.

    Raises:
        BadInput: the file cannot be read, ends inside a record, or a checksum is wrong; names the record, from 0.
    """
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == _GZIP_MAGIC
            plain.seek(0)
            if zipped:
                with gzip.open(plain) as file:
                    yield from _checked(file, path)
            else:
                yield from _checked(plain, path)
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{path}: cannot be read: {reason}") from error


def _checked(file: IO[bytes] | gzip.GzipFile, path: Path) -> Iterator[bytes]:
    payloads: list[bytes] = []
    expected: list[int] = []
    n_before = n_bytes = 0
    for payload, check in _framed(file, path):
        payloads.append(payload)
        expected.append(check)
        n_bytes += len(payload)
        if len(payloads) == BATCH_RECORDS or n_bytes >= BATCH_BYTES:
            yield from _verified(payloads, expected, path, n_before)
            n_before += len(payloads)
            payloads, expected, n_bytes = [], [], 0
    if payloads:
        yield from _verified(payloads, expected, path, n_before)


def _framed(file: IO[bytes] | gzip.GzipFile, path: Path) -> Iterator[tuple[bytes, int]]:
    """Payloads with the checksums that stand behind them; those of the lengths are checked here."""
    number = 0
    while header := file.read(12):
        if len(header) == 12 and masked(crc32c(header[:8])) != int.from_bytes(header[8:], "little"):
            raise BadInput(f"{path}: record {number}: the checksum of its length is wrong; get the file again")
        length = int.from_bytes(header[:8], "little")
        if length > LARGEST_PAYLOAD:
            raise BadInput(f"{path}: record {number}: {length} bytes are no record of a benchmark; get the file again")
        body = file.read(length + 4)
        if len(header) < 12 or len(body) < length + 4:
            raise BadInput(f"{path}: record {number}: the file ends inside it; get the file again")
        yield body[:length], int.from_bytes(body[length:], "little")
        number += 1


def _verified(payloads: list[bytes], expected: list[int], path: Path, n_before: int) -> list[bytes]:
    crc_N = crc32c_of_each(payloads)
    masked_N = ((crc_N >> np.uint32(15)) | (crc_N << np.uint32(17))) + np.uint32(_MASK_DELTA)
    wrong = np.flatnonzero(masked_N != np.array(expected, dtype=np.uint32))
    if wrong.size:
        number = n_before + int(wrong[0])
        raise BadInput(f"{path}: record {number}: the checksum of its payload is wrong; get the file again")
    return payloads
