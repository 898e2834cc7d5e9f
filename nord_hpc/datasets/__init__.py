"""Data sets: each source in a file of its own, and `open_dataset`, which cleans, splits and normalizes any of them."""

from nord_hpc.datasets.dataset import Dataset, DatasetInfo, RawData, Split, make_source, open_dataset

__all__ = ["Dataset", "DatasetInfo", "RawData", "Split", "make_source", "open_dataset"]
