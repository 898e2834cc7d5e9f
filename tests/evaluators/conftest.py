"""Fixtures of these tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "data_parallel"))

from running_ranks import run_ranks

__all__ = ["run_ranks"]
