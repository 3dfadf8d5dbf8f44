"""Compress: from a trained network to a package that serves it small and fast.

    stage.py     `compress`, and what its result depends on
    package.py   convert, check, measure, publish
    export.py    torch to ONNX, the same bytes wherever it is done
    quantize.py  one function a technique
    check.py     a converted model must be valid and compute what its parent computes
    latency.py   what the machine at hand makes of each form
    mlmodel.py   the file that lets MLflow load the package

Evaluation decides whether the smaller form is good enough; this room only refuses what is broken.
"""

from modelyard.compress.config import CompressConfig, DynamicInt8, MeasureConfig, StaticInt8
from modelyard.compress.stage import compress

__all__ = ["CompressConfig", "DynamicInt8", "MeasureConfig", "StaticInt8", "compress"]
