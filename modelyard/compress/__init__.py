"""Compress: from a trained network to a package that serves it small and fast.

    stage.py       `compress`, and what its result depends on
    config.py      which forms, said or searched; with techniques.py (one config a technique) and budget.py
    package.py     forms that were said: convert, check, measure, publish

    search.py      what to try next, as an ask / tell object without any plumbing; outcomes.py: what it asks and is told
    decision.py    who is inside the budget, who won, and why each of the others lost
    candidates.py  candidates as artifacts; searched.py: the winner's package, and a whole search in one process
    workshop.py    jobs that may crash, in processes of their own; helper.py is the other side, jobs.py what they do
    quiet.py       nobody builds while somebody measures
    quality.py     how much worse a candidate is, and how much worse it could be

    networks.py    techniques on the network; their maths in factorise.py and prune.py
    chains.py      which units and channels can go; heads.py: which attention heads
    forms.py       techniques that make files: export.py (ONNX), quantize.py and block_weights.py (onnxruntime), openvino.py
                   (OpenVINO, NNCF), learned.py (int8 as it was trained); calibration.py: the rows that fix ranges
    check.py       a converted model must be valid and compute what its parent computes
    rows.py        network input of a data set
    latency.py     what the machine at hand makes of each form; looks.py: what several processes make of it together
    front.py       the picture and the table of a search
    mlmodel.py     the file that lets MLflow load the package

Evaluation decides whether the smaller form is good enough; this room refuses what is broken, and what the budget does
not allow.
"""

from modelyard.compress.budget import Budget, DropLimit, LatencyLimit
from modelyard.compress.config import CompressConfig, MeasureConfig, SearchConfig
from modelyard.compress.stage import compress
from modelyard.compress.techniques import (
    AcceleratorOnly,
    Distil,
    DynamicInt8,
    Float32,
    HalfWeights,
    Int4Weights,
    Int8Weights,
    LowRank,
    NncfInt8,
    PrincipalComponents,
    PruneHeads,
    PruneUnits,
    PruneWeights,
    QuantizeAware,
    Recovery,
    StaticInt8,
)

__all__ = [
    "AcceleratorOnly",
    "Budget",
    "CompressConfig",
    "Distil",
    "DropLimit",
    "DynamicInt8",
    "Float32",
    "HalfWeights",
    "Int4Weights",
    "Int8Weights",
    "LatencyLimit",
    "LowRank",
    "MeasureConfig",
    "NncfInt8",
    "PrincipalComponents",
    "PruneHeads",
    "PruneUnits",
    "PruneWeights",
    "QuantizeAware",
    "Recovery",
    "SearchConfig",
    "StaticInt8",
    "compress",
]
