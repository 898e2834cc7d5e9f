"""The handwritten digits of scikit-learn: 1,797 grey images of 8 x 8 in 10 classes, read from its package."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from nord_hpc.datasets.dataset import RawData
from nord_hpc.errors import BadInput


class Digits:
    """x is float32 [1797, 1, 8, 8], whole numbers 0 to 16. There is no test part: one is carved out."""

    class Options(BaseModel):
        """There are none."""

        model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, options: Options, *, path: Path | None, cache: Path) -> None:
        if path is not None:
            raise BadInput("dataset.path: digits come with scikit-learn and take no path; remove it")
        self._file = _packaged_file()

    def files(self) -> list[Path]:
        return [self._file]

    def load(self) -> RawData:
        # The file itself, as to import scikit-learn takes a second, and every worker would.
        text = gzip.decompress(self._file.read_bytes())
        table = np.array(text.replace(b"\n", b",").rstrip(b",").split(b","), dtype=np.float32).reshape(-1, 65)
        return RawData(
            x_train=table[:, :64].reshape(-1, 1, 8, 8),
            y_train=table[:, 64].astype(np.int64),
            source="test part of the Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, UCI), "
            "as packaged in scikit-learn",
            licence="scikit-learn: BSD-3-Clause; the data: CC BY 4.0",
        )


def _packaged_file() -> Path:
    spec = importlib.util.find_spec("sklearn")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return file
    raise BadInput("dataset.name: digits come with scikit-learn, which is not installed; pip install scikit-learn")
