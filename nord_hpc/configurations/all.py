"""NORD's name for the table of data sets."""

from nord_hpc.scripting.configs import Configs

__all__ = ["Configs"]
