"""Text as data: parts, vocabularies, windows, files of many kinds, and what is said of wrong ones."""

from __future__ import annotations

import gzip
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance.dataset_suite import DatasetSuite, Make

from nord_hpc.datasets import Dataset, DatasetInfo, make_source
from nord_hpc.errors import BadInput
from nord_hpc.job import DatasetSettings

Open = Callable[..., Dataset]

SENTENCES = "the cat sat on the mat . the dog sat on the log .\n"


class TestTextConforms(DatasetSuite):
    """Windows of tokens are the samples; they are integers, and nothing is normalized or carved by chance."""

    name = "text"
    options = {"bptt": 4, "evaluation_streams": 2}  # noqa: RUF012
    n_axes = 2

    def prepare(self, folder: Path) -> dict[str, Any]:
        (folder / "input.txt").write_text(SENTENCES * 40)
        return {"path": "input.txt"}

    def test_parts_are_what_the_trainer_takes(self, make: Make) -> None:
        d = make()
        assert d.info.task == "language_modelling" and d.info.input_shape == (d.info.n_outputs, 4)
        for part, n in (("train", d.info.n_train), ("validation", d.info.n_validation), ("test", d.info.n_test)):
            split = getattr(d, part)
            assert n > 0 and split.x.shape == split.y.shape == (n, 4)
            assert split.x.dtype == split.y.dtype == np.int32
            assert not split.x.flags.writeable and not split.y.flags.writeable
            assert split.x.min() >= 0 and split.x.max() < d.info.n_outputs and split.y.max() < d.info.n_outputs
        assert d.train.y.min() == 0

    def test_the_training_part_is_normalized(self, make: Make) -> None:
        info = make().info
        assert info.normalized and info.mean == info.std == ()

    def test_the_test_part_does_not_depend_on_the_seed(self, make: Make) -> None:
        first, second = make(split_seed=1), make(split_seed=2)
        for part in ("train", "validation", "test"):
            assert np.array_equal(getattr(first, part).x, getattr(second, part).x)


def decoded(info: DatasetInfo, tokens: Any) -> str:
    return "".join(info.class_names[token] for token in np.asarray(tokens).reshape(-1) if token >= 0)


def test_one_text_is_split_in_its_order(tmp_path: Path, open_: Open) -> None:
    text = SENTENCES * 40
    (tmp_path / "input.txt").write_text(text)
    d = open_(name="text", path="input.txt", bptt=7)
    assert len(text) == 2000
    parts = {"train": text[:1800], "validation": text[1800:1900], "test": text[1900:]}
    for name, part in parts.items():
        split = getattr(d, name)
        n_windows = 1799 // 7 if name == "train" else math.ceil(99 / 7)
        assert len(split.x) == n_windows
        shown = part[1 : 7 * n_windows + 1]
        assert decoded(d.info, split.y) == shown
        assert decoded(d.info, split.x)[: len(shown)] == part[: len(shown)]
        assert (split.y < 0).sum() == max(0, 7 * n_windows - 99) * (name != "train")
    assert sorted(d.info.class_names) == sorted(set(text))
    assert d.info.class_names[:2] == (" ", "t")  # by frequency
    assert d.info.notes == (
        f"2,000 characters, {len(set(text))} of them different",
        "one text, split in its order: 90 % training, 5 % validation, 5 % test",
        "a validation part of its own: dataset.validation is not used",
    )


def test_a_share_is_the_beginning(tmp_path: Path, open_: Open) -> None:
    (tmp_path / "input.txt").write_text(SENTENCES * 40)
    whole, half = (open_(name="text", path="input.txt", bptt=9, fraction=fraction) for fraction in (1.0, 0.5))
    assert half.info.n_train == whole.info.n_train // 2 and half.info.class_names == whole.info.class_names
    assert np.array_equal(half.train.x, whole.train.x[: half.info.n_train])


def three_files(folder: Path, *, pack: bool = False) -> None:
    folder.mkdir()
    parts = {"train": "a b b <unk> c\nb b a\n", "valid": "a b d\n", "test": "d c\n"}
    for name, text in parts.items():
        file = folder / (f"ptb.{name}.txt" + (".gz" if pack else ""))
        file.write_bytes(gzip.compress(text.encode()) if pack else text.encode())
    (folder / "README.md").write_text("about the test")


@pytest.mark.parametrize("pack", [False, True])
def test_three_files_of_words(tmp_path: Path, open_: Open, pack: bool) -> None:
    three_files(tmp_path / "ptb", pack=pack)
    d = open_(name="text", path="ptb", unit="words", bptt=3)
    assert d.info.class_names == ("b", "<eos>", "a", "<unk>", "c")
    assert d.train.x.tolist() == [[2, 0, 0], [3, 4, 1], [0, 0, 2]]
    assert d.train.y.tolist() == [[0, 0, 3], [4, 1, 0], [0, 2, 1]]
    assert d.validation.x.tolist() == [[2, 0, 3]] and d.validation.y.tolist() == [[0, 3, 1]]
    assert d.test.y.tolist() == [[4, 1, -1]]
    assert "validation: 1 words became <unk>" in d.info.notes and "test: 1 words became <unk>" in d.info.notes


def test_rare_words_leave_the_vocabulary(tmp_path: Path, open_: Open) -> None:
    three_files(tmp_path / "ptb")
    assert open_(name="text", path="ptb", unit="words", bptt=3, vocabulary=2).info.class_names == (
        "b", "<eos>", "<unk>",
    )  # fmt: skip
    d = open_(name="text", path="ptb", unit="words", bptt=3, min_count=2)
    assert d.info.class_names == ("b", "<eos>", "a", "<unk>") and d.info.n_outputs == 4
    assert "train: 2 words became <unk>" in d.info.notes


def test_the_variable_says_where_the_text_is(tmp_path: Path, open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NORD_HPC_TEXT", raising=False)
    with pytest.raises(BadInput, match=r"dataset\.path: is missing; set it, or the variable NORD_HPC_TEXT, to a text"):
        open_(name="text")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "any.txt").write_text(SENTENCES * 40)
    monkeypatch.setenv("NORD_HPC_TEXT", str(tmp_path / "other"))
    assert open_(name="text").info.n_train == 1799 // 35


def test_what_is_wrong_is_said(tmp_path: Path, open_: Open) -> None:
    def message(path: str, **options: Any) -> str:
        with pytest.raises(BadInput) as caught:
            open_(name="text", path=path, **options)
        return str(caught.value)

    assert "nothing does not exist; set it to a text file, or a folder" in message("nothing")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 100)
    assert "latin.txt is not UTF-8 text at byte 0; convert it" in message("latin.txt")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"some text" * 100)[:-12])
    assert "cut.gz cannot be read: " in message("cut.gz")
    (tmp_path / "short.txt").write_text("a" * 30)
    assert message("short.txt") == "dataset.path: the validation part has 1 characters; give more text"
    (tmp_path / "same.txt").write_text("a" * 100)
    assert "the training part has one token only ('a')" in message("same.txt")
    (tmp_path / "few.txt").write_text("ab" * 50)
    assert message("few.txt", bptt=90) == (
        "dataset text: the training part has 90 tokens, and a window needs 91 of the share in use; give more text or "
        "set dataset.bptt below 90"
    )
    three_files(tmp_path / "ptb")
    (tmp_path / "ptb" / "ptb.test.txt").unlink()
    assert "ptb has no file of the parts test; set it to" in message("ptb")
    (tmp_path / "ptb" / "more.train.txt").write_text("a")
    assert "are both train parts; leave one of them" in message("ptb")
    with pytest.raises(BadInput, match=r"dataset\.unit: 'bytes' is not|dataset\.unit: \"bytes\" is not"):
        make_source(DatasetSettings(name="text", path="few.txt", unit="bytes"), folder=tmp_path)


def trigram_bits(train: str, test: str) -> float:
    """Bits per character of a trigram model with one added to each count."""
    vocabulary = len(set(train))
    triples = Counter(train[i : i + 3] for i in range(len(train) - 2))
    pairs = Counter(train[i : i + 2] for i in range(len(train) - 1))
    places = [test[i - 2 : i + 1] for i in range(2, len(test))]
    return -sum(math.log2((triples[p] + 1) / (pairs[p[:2]] + vocabulary)) for p in places) / len(places)


def test_the_plays(open_: Open, shared_data: Path) -> None:
    file = shared_data / "text_tinyshakespeare" / "input.txt.gz"
    if not file.is_file():
        pytest.skip(f"there is no {file}")
    d = open_(name="text", path=str(file), bptt=64)
    assert (d.info.n_outputs, d.info.n_train, d.info.n_validation, d.info.n_test) == (65, 15685, 872, 872)
    text = gzip.decompress(file.read_bytes()).decode()
    assert len(text) == 1_115_394 and decoded(d.info, d.test.y) == text[int(0.95 * len(text)) + 1 :]
    # What a model with memory has to beat: 3.04 bits in the literature of this text.
    assert trigram_bits(text[: int(0.9 * len(text))], text[int(0.95 * len(text)) :]) == pytest.approx(3.04, abs=0.02)
