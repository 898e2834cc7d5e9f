"""Configs: what is set for one data set, and nothing for any other."""

from __future__ import annotations

import pytest
from small_data import blobs
from torch import nn

from nord_hpc.configurations.all import Configs
from nord_hpc.errors import BadInput
from nord_hpc.scripting.dense_parts import DenseNet
from nord_hpc.scripting.loading import NamedData


def test_known_from_the_start(conf: Configs) -> None:
    assert list(conf.NUM_CLASSES) == ["cifar10", "fashion_mnist", "digits", "activity_recognition"]
    assert dict(conf.NUM_CLASSES) == {"cifar10": 10, "fashion_mnist": 10, "digits": 10, "activity_recognition": 7}
    assert dict(conf.CHANNELS) == {"cifar10": 3, "fashion_mnist": 1, "digits": 1, "activity_recognition": 3}
    shapes = {"cifar10": (32, 32), "fashion_mnist": (28, 28), "digits": (8, 8), "activity_recognition": (52,)}
    assert dict(conf.INPUT_SHAPE) == shapes
    assert conf.CRITERION["cifar10"] == "cross_entropy"
    assert conf.METRIC["cifar10"] == ("accuracy",)
    assert conf.DIMENSION_KEEPING["cifar10"] is None
    assert conf.DATA_LOAD["digits"] == NamedData("digits")
    assert conf.INPUT_SHAPE["fashion-mnist"] == (28, 28)


def test_one_setting_changes_one_record(conf: Configs) -> None:
    before = dict(conf.records)
    conf.CRITERION["digits"] = nn.CrossEntropyLoss
    conf.METRIC["digits"] = "macro_f1"
    conf.DIMENSION_KEEPING["digits"] = 8
    assert conf.METRIC["digits"] == ("macro_f1",)
    assert {name for name in before if conf.records[name] != before[name]} == {"digits"}
    assert before["digits"].criterion == "cross_entropy"
    assert conf.records["digits"].data_load == before["digits"].data_load


def test_classification(conf: Configs) -> None:
    conf.add_classification_dataset(name="six", num_classes=6, input_shape=(6, 6), channels=1, data_load=blobs)
    assert isinstance(conf.DENSE_PART["six"], DenseNet)
    assert conf.DENSE_PART["six"].output_size == 6  # its own classes, not those of another data set
    assert conf.DENSE_PART["cifar10"].output_size == 10
    assert (conf.CRITERION["six"], conf.METRIC["six"]) == ("cross_entropy", ("accuracy",))


def test_regression(conf: Configs) -> None:
    conf.add_regression_dataset("line", 2, [5], 1, blobs)
    assert conf.INPUT_SHAPE["line"] == (5,)
    assert conf.CRITERION["line"] == "mean_squared_error"
    assert conf.METRIC["line"] == ("mean_squared_error", "mean_absolute_error")
    assert conf.DENSE_PART["line"].activation is None
    assert conf.records["line"].task == "regression"


def test_all_by_hand(conf: Configs) -> None:
    def metric(predicted: object, targets: object) -> float:
        return 0.5

    conf.add_dataset("own", 3, (6, 6), 1, nn.NLLLoss, metric, 6, blobs, "dense_net")
    assert conf.METRIC["own"] == (metric,)
    assert conf.DIMENSION_KEEPING["own"] == 6
    conf.add_dataset("own", 4, (6, 6), 1, nn.NLLLoss, [metric, "auc"], None, blobs, None)
    assert (conf.NUM_CLASSES["own"], conf.METRIC["own"]) == (4, (metric, "auc"))
    with pytest.raises(
        BadInput, match=r"dataset own: num_classes, channels and the sizes of input_shape are 1 or more"
    ):
        conf.add_dataset("own", 0, (6, 6), 1, nn.NLLLoss, metric, 6, blobs, "dense_net")


def test_unknown_names(conf: Configs) -> None:
    with pytest.raises(BadInput, match=r"dataset 'cifar' is not known: did you mean cifar10\? add it, or set one of"):
        conf.record("cifar")
    with pytest.raises(KeyError, match="mnist"):
        conf.CHANNELS["mnist"]
    with pytest.raises(BadInput, match="'new' is not known"):
        conf.CHANNELS["new"] = 3
    assert "mnist" not in conf.CHANNELS


def test_printing(conf: Configs, capsys: pytest.CaptureFixture[str]) -> None:
    conf.print_datasets()
    assert capsys.readouterr().out == "['cifar10', 'fashion_mnist', 'digits', 'activity_recognition']\n"


def test_one_table_for_a_script_and_others_where_wanted(conf: Configs) -> None:
    Configs().add_classification_dataset("seen by all", 2, (6, 6), 1, blobs)
    try:
        assert Configs().NUM_CLASSES["seen by all"] == 2
        assert "seen by all" not in conf.NUM_CLASSES
    finally:
        del Configs().records["seen by all"]
