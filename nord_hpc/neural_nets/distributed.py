"""NORD's name for the ranks of a script as a context."""

from nord_hpc.scripting.environment import Environment

__all__ = ["Environment"]
