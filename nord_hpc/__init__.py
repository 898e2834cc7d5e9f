"""nord_hpc: neural architecture search as a distributed HPC service."""

__version__ = "0.1.0"
