"""Batch prediction: a packaged model over a data set or raw files in the bucket, shard by shard.

config.py   what to answer with, and what to keep beside the answers
shards.py   the shards of a data set or of raw files, and their rows
stage.py    `predict`: answers as Parquet, with a marker a shard, so that a killed run goes on

The rows go through the same transform and runtime as behind the endpoint (`modelyard.model_package`).
"""

from modelyard.predict.config import PredictConfig
from modelyard.predict.stage import Predictions, predict

__all__ = ["PredictConfig", "Predictions", "predict"]
