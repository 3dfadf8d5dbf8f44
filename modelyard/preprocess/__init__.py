"""Preprocess: from the files a user has in object storage to clean, split, described rows.

    snapshot    names exactly which bytes a data set is made from
    preprocess  schema check, cleaning, exact and near duplicates, split by hash, shards, fitted transform

Everything streams: rows are read in bounded batches, and what must wait until all were seen waits on the local disk.
"""

from modelyard.preprocess.config import PreprocessConfig
from modelyard.preprocess.sections import SplitConfig
from modelyard.preprocess.snapshot import snapshot
from modelyard.preprocess.stage import preprocess

__all__ = ["PreprocessConfig", "SplitConfig", "preprocess", "snapshot"]
