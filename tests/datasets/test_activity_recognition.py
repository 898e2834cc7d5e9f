"""The accelerometer data: real counts, windows that cross nothing, and files with all that can be wrong with them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nord_hpc.builder import plan
from nord_hpc.builder.network import build
from nord_hpc.data_parallel.single import SingleGang
from nord_hpc.datasets import Dataset, RawData, activity_files, activity_recognition, make_source
from nord_hpc.descriptor import NeuralDescriptor
from nord_hpc.errors import BadInput
from nord_hpc.job import DatasetSettings, TrainingSettings
from nord_hpc.training.data import Part
from nord_hpc.training.trainer import TrainingData, train
from nord_hpc.trial import Fidelity

Open = Callable[..., Dataset]
NAME = "activity_recognition"


def load(folder: Path, **settings: Any) -> RawData:
    source = make_source(DatasetSettings(name=NAME, **settings), folder=folder, cache=folder / "cache")
    raw = source.load()
    assert isinstance(raw, RawData)
    return raw


@pytest.fixture
def real(shared_data: Path) -> Path:
    return shared_data / "activity_chest_accelerometer" / "activity.npz"


def csv_of(xyz: Any, y: Any) -> str:
    """As the official files are written: numbers rounded to five digits, no header."""
    return "".join(
        f"{number if number < 100000 else f'{number:.3e}'},{row[0]},{row[1]},{row[2]},{label}\n"
        for number, (row, label) in enumerate(zip(xyz, y, strict=True))
    )


def write(folder: Path, lengths: dict[int, list[tuple[int, int]]]) -> None:
    """Files 1.csv, ... with runs of (label, rows); x counts the rows, y is the subject, z the label."""
    for subject, runs in lengths.items():
        labels = [label for label, n in runs for _ in range(n)]
        rows = [(index, subject, label) for index, label in enumerate(labels)]
        (folder / f"{subject}.csv").write_text(csv_of(rows, labels))


def test_all_real_participants(tmp_path: Path, real: Path) -> None:
    raw = load(tmp_path, path=str(real))
    assert raw.x_train.shape == (58364, 3, 52) and raw.x_train.dtype == np.float32
    assert raw.x_test is not None and raw.y_test is not None and raw.x_test.shape == (15409, 3, 52)
    assert raw.groups_train is not None and set(raw.groups_train.tolist()) == set(range(1, 12))
    # As the rows are shared out, within what is lost at the ends of runs.
    shares = np.bincount(np.concatenate([raw.y_train, raw.y_test])) / (58364 + 15409)
    assert shares == pytest.approx([0, 0.316, 0.025, 0.113, 0.185, 0.027, 0.025, 0.308], abs=0.005)
    assert raw.x_train[0, :, :3].T.tolist() == [[1502, 2215, 2153], [1667, 2072, 2047], [1611, 1957, 1906]]
    assert raw.notes[0].startswith("3719 rows without activity (label 0) left out, by participant 1: 1, 2: 270, 3: 1")
    assert raw.notes[1].startswith("labels: 1 working at computer; 2 standing up")
    with np.load(real) as archive:
        numbers = archive["s13_xyz"], archive["s13_y"]
    recording = activity_files.Recording(13, numbers[0].T, numbers[1].astype(np.int64), np.zeros(len(numbers[1]), bool))
    assert activity_files.is_official(recording)
    numbers[0][0, 5] += 1
    assert not activity_files.is_official(recording)


def test_csv_files_and_archive_and_npz_are_one_data_set(
    tmp_path: Path, real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "csv"
    folder.mkdir()
    with np.load(real) as archive:
        arrays = {key: archive[key] for key in archive.files if key[:3] in ("s07", "s10", "s13")}
    for subject in (7, 10, 13):
        y = arrays[f"s{subject:02d}_y"]
        (folder / f"{subject}.csv").write_text(csv_of(arrays[f"s{subject:02d}_xyz"].T, y))
    assert "1.049e+05," in (folder / "7.csv").read_text()
    np.savez(tmp_path / "d.npz", **arrays)
    # As by hand on a Mac, with files of its own beside those of the archive.
    mirror = tmp_path / "mirror" / "activity_recognition"
    mirror.mkdir(parents=True)
    with zipfile.ZipFile(mirror / activity_recognition.ARCHIVE, "w") as packed:
        for file in folder.iterdir():
            packed.write(file, f"Activity Recognition/{file.name}")
        packed.writestr("__MACOSX/._7.csv", b"\0")
        packed.writestr("Activity Recognition/README", "text")
    first = load(tmp_path, path="csv", test_subjects=1)
    others = [
        load(tmp_path, path="d.npz", test_subjects=1),
        load(tmp_path, path=str(mirror / activity_recognition.ARCHIVE), test_subjects=1),
        load(tmp_path, mirror=(tmp_path / "mirror").as_uri(), test_subjects=[13]),
    ]
    for other in others:
        for name in ("x_train", "y_train", "x_test", "y_test", "groups_train"):
            assert np.array_equal(getattr(first, name), getattr(other, name)), name
        assert other.notes == first.notes
    assert not any("not the official" in note for note in first.notes)
    # A downloaded archive with other numbers is refused, one that is given is used and noted.
    monkeypatch.setitem(activity_files.NUMBERS_SHA256, 10, "0" * 64)
    assert load(tmp_path, path="csv", test_subjects=1).notes[0] == "not the official numbers: participant 10"
    with pytest.raises(BadInput, match=r"numbers of participant 10 are not the official ones; remove the file to"):
        load(tmp_path, mirror=(tmp_path / "mirror").as_uri(), test_subjects=1)


def test_windows_are_cut_inside_a_participant_and_an_activity(tmp_path: Path) -> None:
    runs = {1: [(1, 10), (2, 7), (0, 5), (2, 4), (1, 3)], 2: [(1, 6), (2, 9)], 3: [(2, 8), (1, 8)]}
    write(tmp_path, runs)
    raw = load(tmp_path, path=".", window=4, stride=3, test_subjects=[3])
    assert raw.x_test is not None and raw.y_test is not None
    # Participant 1: 10 rows give windows at 0, 3, 6; 7 at 0, 3; 4 at 0; 3 none. Participant 2: 6 at 0; 9 at 0, 3.
    assert raw.y_train.tolist() == [1, 1, 1, 2, 2, 2, 1, 2, 2]
    assert raw.groups_train is not None and raw.groups_train.tolist() == [1] * 6 + [2] * 3
    assert raw.x_train[:, 0, 0].tolist() == [0, 3, 6, 10, 13, 22, 0, 6, 9]
    assert (np.diff(raw.x_train[:, 0], axis=1) == 1).all()  # consecutive rows
    assert (raw.x_train[:, 1] == raw.groups_train[:, None]).all()  # of one participant
    assert (raw.x_train[:, 2] == raw.y_train[:, None]).all()  # and one activity
    assert raw.y_test.tolist() == [2, 2, 1, 1] and (raw.x_test[:, 1] == 3).all()


def test_differences_are_taken_inside_runs(tmp_path: Path) -> None:
    write(tmp_path, {1: [(1, 5), (2, 5)], 2: [(1, 5), (2, 5)]})
    raw = load(tmp_path, path=".", window=2, stride=1, differentiate=True, test_subjects=1)
    assert raw.y_train.tolist() == [1, 1, 1, 2, 2, 2]
    assert (raw.x_train[:, 0] == 1).all() and (raw.x_train[:, 1:] == 0).all()  # no jump of the label in z


def test_validation_is_by_participant(tmp_path: Path, open_: Open) -> None:
    write(tmp_path, {subject: [(1, 20), (2, 20)] for subject in range(1, 9)})
    d = open_(name=NAME, path=".", window=5, stride=5, test_subjects=2)
    subjects = {
        part: set(np.round(getattr(d, part).x[:, 1] * d.info.std[1] + d.info.mean[1]).astype(int).ravel().tolist())
        for part in ("train", "validation", "test")
    }
    assert subjects["test"] == {7, 8} and len(subjects["validation"]) == 1
    assert subjects["train"] | subjects["validation"] == set(range(1, 7))
    assert not subjects["train"] & subjects["validation"]


def faulty_csv() -> str:
    """60 rows of six labels with gaps: NaN in three, no z in one, a trailing semicolon, a blank line."""
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 2, 4, 7, 12, 13], 10)
    lines = [
        f"{number},{','.join(map(str, rng.integers(1, 4096, 3)))},{label}"
        for number, label in enumerate(labels.tolist())
    ]
    for row, column in ((3, 1), (17, 2), (44, 3)):  # lines 4, 18 and, after the blank one, 46
        fields = lines[row].split(",")
        fields[column] = ("nan", "NaN", "")[column - 1]
        lines[row] = ",".join(fields)
    fields = lines[25].split(",")
    lines[25] = ",".join([*fields[:3], fields[4]])
    lines[30] += ";"
    lines.insert(40, "")
    return "\n".join(lines) + "\n"


def test_faulty_rows_are_left_out_by_rule_with_their_line_numbers(tmp_path: Path, open_: Open) -> None:
    (tmp_path / "1.csv").write_text(faulty_csv())
    d = open_(name=NAME, path=".", window=1, stride=1, test_subjects=0)
    assert d.info.class_labels == {1: 0, 2: 1, 4: 2, 7: 3, 12: 4, 13: 5}
    assert d.info.n_train + d.info.n_validation + d.info.n_test == 56
    name = tmp_path / "1.csv"
    assert d.info.notes[:5] == (
        f"{name}: not a finite number, left out: line 4, 18",
        f"{name}: 4 fields, not 5, left out: line 26",
        f"{name}: semicolon taken away at the end of line 31",
        f"{name}: blank, skipped: line 41",
        f"{name}: not a number, left out: line 46",
    )
    data = TrainingData(d.info, *(Part(part, d.info, device=torch.device("cpu")) for part in (d.train, d.validation)))
    network = NeuralDescriptor()
    network.add_layer_sequential("Conv1d", {"out_channels": 4, "kernel_size": 3})
    network.add_layer_sequential("ReLU")
    result = train(
        build(plan(network, input_shape=d.info.input_shape, n_outputs=6), seed=1),
        data,
        settings=TrainingSettings(batch_size=8),
        fidelity=Fidelity(epochs=2),
        shards=1,
        seed=1,
        reduction="exact",
        precision="fp32",
        data_parallel=SingleGang(),
        control=_Free(),
    )
    assert all(np.isfinite(report.train_loss or 0.0) for report in result.curve)


class _Free:
    def check(self) -> None:
        pass


def test_windows_do_not_bridge_rows_that_were_left_out(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("".join(f"{k},{k},0,0,1\n" if k != 5 else "5,x,0,0,1\n" for k in range(12)))
    write(tmp_path, {2: [(2, 12)], 3: [(1, 4), (2, 4)]})
    raw = load(tmp_path, path=".", window=3, stride=1, test_subjects=[3])
    assert raw.x_train[raw.groups_train == 1, 0, 0].tolist() == [0, 1, 2, 6, 7, 8, 9]
    assert raw.notes[0] == f"{tmp_path / '1.csv'}: not a number, left out: line 6"


def test_odd_lines(tmp_path: Path) -> None:
    lines = ["number,x,y,z,label", "0,1,2,3,1 ;; ", "1,1,2,3,1.5", "2,1,2,inf,1", "3, 4,5 ,6, 2", ";", "4,7,8,9,2\r"]
    (tmp_path / "1.csv").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    recordings, notes = activity_files.read_recordings(activity_files.find_files(tmp_path))
    assert recordings[0].xyz.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert recordings[0].labels.tolist() == [1, 2, 2] and recordings[0].after_gap.tolist() == [True, True, False]
    assert [note.partition(": ")[2] for note in notes] == [
        "not a number, left out: line 1",
        "semicolon taken away at the end of line 2, 6",
        "no whole number as label, left out: line 3",
        "not a finite number, left out: line 4",
        "blank, skipped: line 6",
        "1 fields, not 5, left out: line 8",
    ]


def test_wrong_places_and_options_are_named(tmp_path: Path, open_: Open) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("hello")
    (tmp_path / "a.csv").write_text("1,2")
    np.savez(tmp_path / "odd.npz", s01_xyz=np.zeros((4, 5)), s01_y=np.zeros(5))
    np.savez(tmp_path / "none.npz", x=np.zeros(3))
    data = tmp_path / "data"
    data.mkdir()
    write(data, {1: [(1, 10), (2, 10)], 2: [(1, 10), (2, 10)]})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.csv").write_text("nothing\n")
    for settings, message in [
        ({"path": "none"}, "none does not exist; set it to the archive, or to a folder of CSV files"),
        ({"path": "a.csv"}, "a.csv is no .zip or .npz file; set it to one, or to a folder of CSV files"),
        ({"path": "empty"}, "empty has no files named 1.csv, 2.csv, ...; put those of the archive there"),
        ({"path": "text.zip"}, "text.zip cannot be unpacked: File is not a zip file; get it again"),
        ({"path": "odd.npz"}, "s01_xyz has shape [4, 5] and s01_y [5]; give [3, samples] and [samples]"),
        ({"path": "none.npz"}, "none.npz has no arrays s01_xyz and s01_y; give both for each participant"),
        ({"path": "broken"}, "1.csv has no line with number, x, y, z and label; put the official file there"),
        ({"path": "data", "test_subjects": [3]}, "test_subjects: there is no participant 3; the data have 1, 2"),
        ({"path": "data"}, "test_subjects: leaves none of the participants 1, 2 for training; set 1 or less"),
        ({"path": "data", "test_subjects": [1, 2]}, "leaves none of the participants 1, 2 for training"),
        ({"path": "data", "test_subjects": 1, "window": 11}, "no run of the training participants has 11 samples"),
        (
            {"path": "data", "test_subjects": -1},
            "test_subjects: -1 participants are too few; set 0 or more",
        ),
        ({"path": "data", "window": 0}, "dataset.window: 0 is wrong; set a number of at least 1"),
    ]:
        with pytest.raises(BadInput) as refused:
            open_(name=NAME, **settings)
        assert message in str(refused.value), settings
