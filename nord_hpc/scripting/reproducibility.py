"""One call that makes a script repeat to the bit."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from nord_hpc.training.device import choose_device, prepare_process


def assure_reproducibility(seed: int = 0) -> None:
    """Seed Python, numpy and torch on all devices, and use deterministic kernels alone.

    Networks and evaluators that are given no seed of their own draw one from torch's generator, so a script that calls
    this first gives the same bits each time on the same machine, number of threads and versions. What it cannot set in
    a running process is PYTHONHASHSEED: sets of strings keep an order of their own in every process.

    What it costs: on CPUs nothing that could be measured, as their kernels are deterministic with a fixed number of
    threads. On GPUs cuDNN no longer tries which algorithm is fastest, some operations have slower deterministic forms,
    and cuBLAS takes 8 buffers of 4 MB; operations without a deterministic form warn.

    Args:
        seed: 0 to 2**32 - 1.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    prepare_process(choose_device("auto", environ=os.environ), threads=torch.get_num_threads())
