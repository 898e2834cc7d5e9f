"""Labels, targets and rows that are not finite: the values they become, and the lines that refuse the rest."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from nord_hpc.datasets.cleaning import (
    check_shapes,
    class_indices,
    dropped_note,
    finite_rows,
    plain_labels,
    targets,
    to_indices,
)
from nord_hpc.datasets.rows import Rows
from nord_hpc.errors import BadInput


def test_labels_with_gaps_become_indices_in_order() -> None:
    labels = plain_labels(np.array([13, 1, 7, 2, 12, 4, 1]), part="train")
    class_labels, class_names = class_indices(labels, None)
    assert class_labels == {1: 0, 2: 1, 4: 2, 7: 3, 12: 4, 13: 5}
    assert class_names == ("1", "2", "4", "7", "12", "13")
    assert to_indices(labels, class_labels, part="train").tolist() == [5, 0, 3, 1, 4, 2, 0]


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (np.array(["cat", "ant", "cat"]), ["cat", "ant", "cat"]),
        (np.array([b"b", b"a"]), ["b", "a"]),
        (np.array([True, False]), [1, 0]),
        (np.array([[3], [-1]], dtype=np.int8), [3, -1]),
        (np.array([2.0, 0.0], dtype=np.float32), [2, 0]),
    ],
)
def test_integers_and_strings_of_all_kinds_are_labels(y: np.ndarray[Any, Any], expected: list[Any]) -> None:
    assert plain_labels(y, part="train").tolist() == expected


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.array([1.0, 0.5]), "y_train is 0.5 in row 1, which is no class label; give integers or strings, or set"),
        (np.eye(3), "y_train has shape [3, 3]; give one label for each sample (of one-hot rows the argmax)"),
        (np.array([None]), "y_train holds object; give integers or strings"),
    ],
)
def test_other_labels_are_refused(y: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        plain_labels(y, part="train")


def test_an_unknown_label_is_named() -> None:
    with pytest.raises(
        BadInput, match="y_test has the label 'dog', which the training part does not have; it has 'ant',"
    ):
        to_indices(np.array(["ant", "dog"]), {"ant": 0, "cat": 1}, part="test")


def test_named_classes_are_positions_and_may_lack_samples() -> None:
    labels, names = class_indices(np.array([2, 0]), ("a", "b", "c"))
    assert labels == {0: 0, 1: 1, 2: 2} and names == ("a", "b", "c")
    with pytest.raises(BadInput, match="y_train has the label 3, and class_names has 3 names"):
        class_indices(np.array([0, 3]), ("a", "b", "c"))
    with pytest.raises(BadInput, match=r"y_train has one class only \(4\); give at least two"):
        class_indices(np.array([4, 4]), None)


def test_rows_that_are_not_finite_are_found_and_noted() -> None:
    x = np.zeros((30, 1, 4), dtype=np.float64)
    x[3, 0, 1], x[7, 0, 0], x[9, 0, 3] = np.nan, np.inf, 1e300  # the last is infinite as float32
    y = np.zeros(30, dtype=np.float32)
    y[12] = np.nan
    keep = finite_rows(Rows(x), y)
    assert np.flatnonzero(~keep).tolist() == [3, 7, 9, 12]
    assert dropped_note("train", keep) == ("train: 4 of 30 rows dropped as they hold NaN or infinity: row 3, 7, 9, 12")
    assert dropped_note("test", np.zeros(12, bool)).endswith("row 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...")


def test_targets_are_float32() -> None:
    assert targets(np.array([1, 2]), part="train").dtype == np.float32
    assert targets(np.zeros((3, 2)), part="train").shape == (3, 2)
    with pytest.raises(BadInput, match=re.escape("y_test is <U1 [1]; give numbers, [samples] or [samples, outputs]")):
        targets(np.array(["a"]), part="test")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(4), "x_train has shape [4]; give [samples, features] or [samples, channels, ...] with no empty axis"),
        (np.zeros((4, 0, 8)), "x_train has shape [4, 0, 8]"),
        (np.zeros((3, 1, 8)), "x_train has 3 samples and y_train has 4; give one target for each"),
        (np.full((4, 1, 8), "a"), "x_train holds <U1, not numbers; give uint8 or float32"),
    ],
)
def test_wrong_shapes_are_refused(x: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        check_shapes({"train": (Rows(x), np.zeros(4))})


def test_parts_must_have_one_sample_shape() -> None:
    train, test = (Rows(np.zeros((2, 1, 8))), np.zeros(2)), (Rows(np.zeros((2, 1, 9))), np.zeros(2))
    with pytest.raises(BadInput, match=re.escape("x_test has samples of [1, 9] and x_train of [1, 8]")):
        check_shapes({"train": train, "test": test})
