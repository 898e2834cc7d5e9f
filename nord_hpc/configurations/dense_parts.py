"""NORD's names for dense parts."""

from nord_hpc.scripting.dense_parts import get_dense_batch_net, get_dense_net

__all__ = ["get_dense_batch_net", "get_dense_net"]
