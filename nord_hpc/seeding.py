"""Seeds: every random choice of a search follows from the job's seed and a name, whatever the order of execution."""

from __future__ import annotations

import hashlib

import numpy as np


def derived_seed(job_seed: int, *path: str | int) -> int:
    """A seed in 0 .. 2**63 - 1 for one purpose, named by `path`.

    Equal arguments give equal seeds on every machine and Python; different ones are unrelated.
    """
    text = "/".join([str(job_seed), *(str(part) for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def trial_seed(job_seed: int, number: int) -> int:
    """The seed of trial `number`: of its initial weights, its sample order, its dropout, and nothing else."""
    return derived_seed(job_seed, "trial", number)


def generator(job_seed: int, *path: str | int) -> np.random.Generator:
    """A numpy generator for one purpose, named by `path`."""
    return np.random.Generator(np.random.PCG64(derived_seed(job_seed, *path)))
