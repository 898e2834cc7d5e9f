"""A sequence of tokens as samples, windows that follow each other; how windows make batches is left to the training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nord_hpc.errors import BadInput

Array = np.ndarray[Any, np.dtype[Any]]

PADDING = -1
"""Target of a place that is no token: it counts in no loss and no metric."""


@dataclass(frozen=True, kw_only=True)
class RawSequence:
    """What a source of text gives: three sequences of tokens over one vocabulary.

    Attributes:
        parts: "train", "validation" and "test" to token indices, int32 [N], in the order of the text.
        vocabulary: the tokens by index; distinct.
        window: tokens of a sample, as many as a network is trained through in one step.
        evaluation_streams: parallel streams in which validation and test part are read.
        source: where the data come from.
        licence: as stated by their authors.
        notes: whatever the source changed or left out, for people.
    """

    parts: Mapping[str, Array]
    vocabulary: tuple[str, ...]
    window: int
    evaluation_streams: int
    source: str
    licence: str
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 of all tokens."""
        digest = hashlib.sha256(repr((self.vocabulary, self.window)).encode())
        for name in sorted(self.parts):
            digest.update(np.ascontiguousarray(self.parts[name], dtype="<i4").data)
        return digest.hexdigest()


def windows(tokens_N: Array, length: int) -> tuple[Array, Array]:
    """All of a sequence as windows, in order: tokens and, for each, the one after it, both int32 [W, length].

    The first token is in no target and the last one in no input. What is left of the last window is `PADDING` in the
    targets, and 0 in the inputs.
    """
    n_targets = len(tokens_N) - 1
    n_windows = -(-n_targets // length)
    x, y = np.zeros(n_windows * length, np.int32), np.full(n_windows * length, PADDING, np.int32)
    x[:n_targets], y[:n_targets] = tokens_N[:-1], tokens_N[1:]
    for array in (x, y):
        array.setflags(write=False)
    return x.reshape(-1, length), y.reshape(-1, length)


def training_windows(tokens_N: Array, length: int, *, fraction: float) -> tuple[Array, Array]:
    """The first share of a sequence as full windows; what does not fill one is left out.

    Raises:
        BadInput: there is not one window.
    """
    n_windows = int((len(tokens_N) - 1) / length * fraction + 1e-6)
    if n_windows < 1:
        raise BadInput(
            f"the training part has {len(tokens_N)} tokens, and a window needs {length + 1} of the share in use; give "
            f"more text or set dataset.bptt below {max(2, len(tokens_N))}"
        )
    return windows(tokens_N[: n_windows * length + 1], length)
