"""Tests of commands run them in their own process."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _leaves_no_handlers(process_as_it_was: None) -> None:
    """For every test here."""
