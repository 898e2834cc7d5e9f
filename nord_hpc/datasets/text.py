"""Text of the user as characters or words, for language modelling; how tokens make samples is left to `sequences`."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nord_hpc.datasets.sequences import RawSequence
from nord_hpc.errors import BadInput

Array = np.ndarray[Any, np.dtype[Any]]

VARIABLE = "NORD_HPC_TEXT"
UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"

SPLIT = {"train": 0.9, "validation": 0.95}
"""Where in a text of one file the parts end; the rest is the test part."""

PART_WORDS = {"train": "train", "valid": "validation", "validation": "validation", "val": "validation", "test": "test"}
EXPECTED = (
    "a text file, or a folder with one, or with three files that have train, valid and test in their names "
    "(such as ptb.train.txt), gzipped or not"
)


class Text:
    """`path` is a UTF-8 text, or a folder; without it the variable NORD_HPC_TEXT says where the text is.

    One file is split in its order: the first 90 % are for training, the next 5 % for validation, the last 5 % for the
    test. A folder with three files, such as those of the Penn Treebank (ptb.train.txt, ptb.valid.txt, ptb.test.txt),
    has its parts already. The vocabulary is that of the training part; all else becomes "<unk>". Words are what stands
    between blanks, and each line ends with "<eos>".
    """

    class Options(BaseModel):
        """What a token is, and how tokens are read.

        Attributes:
            unit: of the text.
            min_count: occurrences in the training part that a token of the vocabulary needs.
            vocabulary: the most frequent tokens that are kept, "<unk>" not counted; None for all.
            bptt: tokens of a sample: truncated back-propagation goes through so many, and the hidden state is carried
                on from one to the next.
            evaluation_streams: parallel streams in which validation and test part are read, each from an empty state;
                1 is exact and slow.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        unit: Literal["characters", "words"] = "characters"
        min_count: int = Field(1, ge=1)
        vocabulary: int | None = Field(None, ge=2)
        bptt: int = Field(35, ge=1)
        evaluation_streams: int = Field(16, ge=1)

    def __init__(self, options: Options, *, path: Path | None, cache: Path) -> None:
        if path is None and os.environ.get(VARIABLE):
            path = Path(os.environ[VARIABLE]).expanduser()
        if path is None:
            raise BadInput(f"dataset.path: is missing; set it, or the variable {VARIABLE}, to {EXPECTED}")
        self._options = options
        self._files = _files(path)

    def load(self) -> RawSequence:
        options = self._options
        texts = {name: _read(file) for name, file in self._files.items()}
        split = _split_characters if options.unit == "characters" else _split_words
        tokens = {name: split(text) for name, text in texts.items()}
        if "whole" in tokens:
            tokens = _carved(tokens["whole"])
        for name, part in tokens.items():
            if len(part) < 2:
                raise BadInput(f"dataset.path: the {name} part has {len(part)} {options.unit}; give more text")
        parts, vocabulary, n_unknown = _indexed(
            tokens, min_count=options.min_count, most=options.vocabulary or len(tokens["train"])
        )
        if len(vocabulary) < 2:
            raise BadInput(
                f"dataset.path: the training part has one token only ({vocabulary[0]!r}); give a text with more, or a "
                "lower dataset.min_count"
            )
        notes = [f"{sum(map(len, parts.values())):,} {options.unit}, {len(vocabulary):,} of them different"]
        notes += [f"{name}: {n:,} {options.unit} became {UNKNOWN}" for name, n in n_unknown.items() if n]
        if "whole" in self._files:
            notes.append("one text, split in its order: 90 % training, 5 % validation, 5 % test")
        notes.append("a validation part of its own: dataset.validation is not used")
        return RawSequence(
            parts=parts,
            vocabulary=vocabulary,
            window=options.bptt,
            evaluation_streams=options.evaluation_streams,
            source=f"the text {', '.join(str(file) for file in self._files.values())}",
            licence="as given by the owner of the text",
            notes=tuple(notes),
        )


def _files(path: Path) -> dict[str, Path]:
    """The files by part; {"whole": file} where there is one only."""
    if path.is_file():
        return {"whole": path}
    if not path.is_dir():
        raise BadInput(f"dataset.path: {path} does not exist; set it to {EXPECTED}")
    found = sorted(
        file for file in path.iterdir() if file.is_file() and not file.name.startswith((".", "README", "LICENSE"))
    )
    parts: dict[str, Path] = {}
    for file in found:
        part = _part_of(file)
        if part in parts:
            raise BadInput(f"dataset.path: {parts[part]} and {file} are both {part} parts; leave one of them")
        if part is not None:
            parts[part] = file
    if len(parts) == 3:
        return parts
    if not parts and len(found) == 1:
        return {"whole": found[0]}
    missing = [name for name in ("train", "validation", "test") if name not in parts]
    raise BadInput(f"dataset.path: {path} has no file of the parts {', '.join(missing)}; set it to {EXPECTED}")


def _part_of(file: Path) -> str | None:
    words = re.split(r"[^a-z]+", file.name.lower())
    return next((PART_WORDS[word] for word in words if word in PART_WORDS), None)


def _read(file: Path) -> str:
    try:
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"dataset.path: {file} is not UTF-8 text at byte {error.start}; convert it") from error
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"dataset.path: {file} cannot be read: {' '.join(str(error).split())}") from error


def _split_characters(text: str) -> Array:
    """Code points, [N]."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _split_words(text: str) -> Array:
    """Words with the ends of lines, object [N]."""
    words: list[str] = []
    for line in text.splitlines():
        words.extend(line.split())
        words.append(END_OF_LINE)
    return np.array(words, dtype=object)


def _carved(whole: Array) -> dict[str, Array]:
    first, second = (int(len(whole) * share + 1e-6) for share in SPLIT.values())
    return {"train": whole[:first], "validation": whole[first:second], "test": whole[second:]}


def _indexed(
    tokens: dict[str, Array], *, min_count: int, most: int
) -> tuple[dict[str, Array], tuple[str, ...], dict[str, int]]:
    """Indices by part, the vocabulary in the order of frequency, and how many tokens of each part became unknown."""
    as_text = chr if tokens["train"].dtype.kind == "u" else str
    counts = Counter(tokens["train"].tolist())
    by_frequency = sorted(counts, key=lambda token: (-counts[token], token))
    kept = [token for token in by_frequency if counts[token] >= min_count][:most]
    names = [as_text(token) for token in kept]
    index = {token: position for position, token in enumerate(kept)}
    unknown = index.get(UNKNOWN, len(names))
    parts, n_unknown = {}, {}
    for name, part in tokens.items():
        found = np.fromiter((index.get(token, -1) for token in part.tolist()), np.int32, len(part))
        n_unknown[name] = int((found < 0).sum())
        parts[name] = np.where(found < 0, unknown, found).astype(np.int32)
    if unknown == len(names) and any(n_unknown.values()):
        names.append(UNKNOWN)
    return parts, tuple(names), n_unknown
