"""NORD's place for `assure_reproducibility`."""

from nord_hpc.scripting.reproducibility import assure_reproducibility

__all__ = ["assure_reproducibility"]
