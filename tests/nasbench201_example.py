"""Cells of NAS-Bench-201 that are known from elsewhere, and where its table is, if it is here."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TABLE = DATA / "nasbench201" / "nasbench201.csv.gz"
OFFICIAL = DATA / "nasbench201" / "official_samples" / "NATS-tss-v1_0-3ffb9-simple"
LATENCY = DATA / "nasbench201_latency" / "latency_ms.npz"

needs_table = pytest.mark.skipif(not TABLE.exists(), reason=f"there is no {TABLE}")
needs_samples = pytest.mark.skipif(not OFFICIAL.is_dir(), reason=f"there is no {OFFICIAL}")
needs_latency = pytest.mark.skipif(not LATENCY.exists(), reason=f"there is no {LATENCY}")

FIRST = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
"""Number 0."""

SECOND = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
"""Number 1."""

NOTHING = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"


def table_rows() -> list[dict[str, str]]:
    with gzip.open(TABLE, "rt", encoding="utf-8") as file:
        return list(csv.DictReader(file))
