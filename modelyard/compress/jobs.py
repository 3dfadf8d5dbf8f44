"""What is done in a process of its own: from files in local folders to files and numbers. No store, no pandas.

Each job takes and returns plain JSON (`modelyard.compress.workshop.Workshop.run` carries it over).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import nn

from modelyard.compress.calibration import calibration_rows, require_same_range
from modelyard.compress.check import Parity, agreeing, check_operators, check_parity, outputs_of, require_open_axes
from modelyard.compress.forms import make_form
from modelyard.compress.latency import measure_in_turns
from modelyard.compress.learned import TOLERANCE, prepare_
from modelyard.compress.networks import multiply_accumulates, parameters, shrink_
from modelyard.compress.quality import PairedBlocks
from modelyard.compress.techniques import Float32, FormTechnique, NetworkTechnique, NncfInt8, QuantizeAware, StaticInt8
from modelyard.errors import ConversionFailed
from modelyard.likeness import NearnessMetrics, cosines
from modelyard.models.build import load_model, save_model
from modelyard.models.config import MODEL_FILE, ModelSpec, ReshapedConfig
from modelyard.models.simulate import simulated
from modelyard.runtime import Runtime, RuntimeSpec, open_runtime
from modelyard.task_kinds import Target, task_kind

Json = Mapping[str, Any]
BATCH_ROWS = 4096


def shrink(request: Json) -> dict[str, Any]:
    """A smaller network of a trained one.

    ``model``: folder; ``technique``; ``rows``, ``targets``: .npy of network input and encoded targets; ``target``; ``out``:
    folder for the new model.
    """
    torch.set_num_threads(request["threads"])
    spec = ModelSpec.model_validate_json((Path(request["model"]) / MODEL_FILE).read_bytes())
    if isinstance(spec.model, ReshapedConfig):
        raise ConversionFailed("the trained network was made smaller before: search from the one it came from")
    technique = TypeAdapter(NetworkTechnique).validate_python(request["technique"])
    network = load_model(Path(request["model"]))
    rows, targets = (torch.from_numpy(np.load(request[name])) for name in ("rows", "targets"))
    if isinstance(technique, QuantizeAware):
        with torch.no_grad():
            names = prepare_(network, rows)
        config = ReshapedConfig(kind="reshaped", base=spec.model, linears={}, simulated=names)
    else:
        loss = task_kind(Target.model_validate(request["target"]).task).loss
        shapes = shrink_(network, technique, rows, targets, loss)
        config = ReshapedConfig(kind="reshaped", base=spec.model, linears=shapes) if shapes else spec.model
    save_model(spec.model_copy(update={"model": config}), network.state_dict(), Path(request["out"]))
    return {"parameters": parameters(network)}


def build(request: Json) -> dict[str, Any]:
    """One form of a network, checked and judged beside the trained network.

    ``model``, ``parent``: folders of the network and of the trained one it came from; ``technique``: of the form, or
    None; ``name``: of its files; ``float``: its float ONNX file, or None; ``features``, ``targets``, ``calibration``: .npy; ``target``; ``out``: folder.
    """
    torch.set_num_threads(request["threads"])
    technique = TypeAdapter(FormTechnique).validate_python(request["technique"]) if request["technique"] else None
    network, out = load_model(Path(request["model"])), Path(request["out"])
    features = np.load(request["features"], mmap_mode="r")
    example = torch.from_numpy(np.ascontiguousarray(features[:1]))
    counts = {"parameters": parameters(network), "macs": multiply_accumulates(network, example)}
    calibration = np.load(request["calibration"])
    if isinstance(technique, StaticInt8 | NncfInt8):
        require_same_range(calibration_rows(calibration, technique.calibration_rows), features)
    spec = make_form(
        network,
        features.shape[1],
        out,
        request["name"],
        technique,
        calibration=calibration,
        float_file=Path(request["float"]) if request["float"] else None,
    )
    runtime = open_runtime(spec, out, request["threads"])
    require_open_axes(runtime, np.array(features[:3]))
    float_network = load_model(Path(request["model"]))
    is_learned = bool(simulated(network))
    is_lossless = technique is None or (isinstance(technique, Float32) and technique.precision == "fp32")
    parity, drops = _judged(request, runtime, float_network, load_model(Path(request["parent"])), features)
    if is_lossless:
        tolerance = request["parity_tolerance"]
        check_parity(request["name"], parity, max(tolerance, TOLERANCE) if is_learned else tolerance)
    operators = check_operators(out / spec.file) if spec.engine == "onnxruntime" else {}
    return {
        **counts,
        "spec": spec.model_dump(mode="json"),
        "size_bytes": spec.size_bytes(out),
        "operators": operators,
        "parity": asdict(parity),
        "drops": drops,
    }


def measure(request: Json) -> dict[str, Any]:
    """Latency of forms, measured in turns. ``forms``: name -> folder and spec; ``reference``: one of them."""
    runtimes = {
        name: open_runtime(RuntimeSpec.model_validate(form["spec"]), Path(form["folder"]), request["threads"])
        for name, form in request["forms"].items()
    }
    features = np.load(request["features"])
    return {
        str(batch): {
            name: asdict(latency)
            for name, latency in measure_in_turns(
                runtimes,
                features,
                batch,
                reference=request["reference"],
                rounds=request["rounds"],
                repeats=request["repeats"],
            ).items()
        }
        for batch in request["batches"]
    }


JOBS: dict[str, Callable[[Json], dict[str, Any]]] = {"shrink": shrink, "build": build, "measure": measure}


def _judged(
    request: Json, runtime: Runtime, network: nn.Module, parent: nn.Module, features: np.ndarray
) -> tuple[Parity, dict[str, Any]]:
    """Parity with its own float network, and the drops of all metrics against the trained one."""
    target, targets = Target.model_validate(request["target"]), np.load(request["targets"])
    kind = task_kind(target.task)
    are_vectors = target.task == "embedding"
    blocks = PairedBlocks(NearnessMetrics if are_vectors else lambda: kind.metric(target), len(targets))
    difference = largest = 0.0
    num_agreeing = broken = 0
    angles: list[np.ndarray] = []
    for start in range(0, len(targets), BATCH_ROWS):
        rows = np.ascontiguousarray(features[start : start + BATCH_ROWS])
        outputs, own, trained = runtime.run(rows), outputs_of(network, rows), outputs_of(parent, rows)
        broken += int((~np.isfinite(outputs)).reshape(len(outputs), -1).any(axis=1).sum())
        if broken:
            continue
        # np.maximum keeps NaN, where max() would drop it.
        difference = float(np.maximum(difference, np.abs(outputs - own).max()))
        largest = float(np.maximum(largest, np.abs(own).max()))
        num_agreeing += int(agreeing(own, outputs).sum())
        if are_vectors:
            angles.append(cosines(own, outputs))
        blocks.update(trained, outputs, trained if are_vectors else targets[start : start + BATCH_ROWS])
    if broken:
        raise ConversionFailed(f"its outputs are NaN or infinite for {broken} of {len(targets)} validation rows")
    drops = blocks.drops(request["confidence"])
    parity = Parity.of(len(targets), difference / max(largest, 1.0), num_agreeing, angles)
    return parity, {name: drop.model_dump() for name, drop in drops.items()}
