"""Fixtures of these tests."""

from __future__ import annotations

from running_ranks import run_ranks

__all__ = ["run_ranks"]
