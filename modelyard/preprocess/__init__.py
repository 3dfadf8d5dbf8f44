"""Preprocess: from the files a user has in object storage to clean, split, described rows.

    snapshot    names exactly which bytes a data set is made from
    preprocess  schema check, cleaning, exact duplicates, split by hash, shards, fitted transform

Rows are read in bounded batches; what is kept in memory for the whole set is 16 bytes a row (for the duplicates).
"""

from modelyard.preprocess.config import PreprocessConfig, SplitFractions
from modelyard.preprocess.snapshot import snapshot
from modelyard.preprocess.stage import preprocess

__all__ = ["PreprocessConfig", "SplitFractions", "preprocess", "snapshot"]
