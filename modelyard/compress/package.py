"""Building a package: convert, check, measure, publish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Attempt, Catalog
from modelyard.compress.check import check_operators, check_parity, compare, require_finite, require_open_axes
from modelyard.compress.config import CompressConfig
from modelyard.compress.export import export_onnx
from modelyard.compress.forms import from_onnx
from modelyard.compress.latency import median_milliseconds
from modelyard.compress.mlmodel import mlmodel_yaml
from modelyard.compress.rows import Rows
from modelyard.compress.techniques import StaticInt8
from modelyard.datasets import TARGET_FILE, Dataset, Split
from modelyard.model_package import FLOAT_FORM, ITEMS_FILE, MLMODEL_FILE, PACKAGE_FILE, TRANSFORM_FILE, PackageSpec
from modelyard.models.build import load_model
from modelyard.models.config import MODEL_FILE
from modelyard.models.recommender import Recommender
from modelyard.models.weights import fetch_weights
from modelyard.runtime import Runtime, RuntimeSpec, open_runtime
from modelyard.task_kinds import Target
from modelyard.transform import read_row_transform

CalibrationRows = Callable[[int], np.ndarray]
NO_ROWS = np.zeros((0, 1), dtype=np.float32)


def build_package(
    catalog: Catalog, model_ref: ArtifactRef, dataset_ref: ArtifactRef, config: CompressConfig, attempt: Attempt
) -> None:
    """Fill an attempt with the package of a trained model (`modelyard.compress.stage.compress` says what it holds)."""
    model_folder, package_folder = attempt.scratch / "model", attempt.scratch / "package"
    package_folder.mkdir()
    fetch_weights(catalog, model_ref, model_folder, [MODEL_FILE, TRANSFORM_FILE, TARGET_FILE])
    calibrated = any(isinstance(technique, StaticInt8) for technique in config.techniques)
    splits: list[Split] = ["train", "validation"] if calibrated else ["validation"]
    dataset = Dataset.fetch(catalog, dataset_ref, attempt.scratch / "dataset", splits)
    transform = read_row_transform((model_folder / TRANSFORM_FILE).read_bytes())
    rows = Rows(dataset, transform)
    model = load_model(model_folder)
    target = Target.model_validate_json((model_folder / TARGET_FILE).read_bytes())
    spec = PackageSpec(
        target=target,
        forms=_make_forms(model, transform.width, package_folder, config, rows.calibration),
        default_form=config.default_form,
        items=_make_items(model, target, package_folder),
    )
    _check_and_measure(attempt, model, spec, package_folder, rows=rows, config=config)
    if spec.items:
        _check_items(attempt, model, spec, package_folder, dataset, config)
    for form in spec.forms.values():
        attempt.add(form.file, package_folder / form.file)
    attempt.add_json(PACKAGE_FILE, spec.model_dump(mode="json"))
    attempt.add(TRANSFORM_FILE, model_folder / TRANSFORM_FILE)
    attempt.add_bytes(MLMODEL_FILE, mlmodel_yaml())


def _make_forms(
    model: nn.Module, input_width: int, folder: Path, config: CompressConfig, calibration: CalibrationRows
) -> dict[str, RuntimeSpec]:
    """Write the float form, then each smaller one from it."""
    forms = {FLOAT_FORM: RuntimeSpec(file=f"{FLOAT_FORM}.onnx", precision="fp32")}
    float_file = folder / forms[FLOAT_FORM].file
    export_onnx(model, input_width, float_file)
    for technique in config.techniques:
        rows = calibration(technique.calibration_rows) if isinstance(technique, StaticInt8) else NO_ROWS
        forms[technique.form] = from_onnx(float_file, folder, technique.form, technique, rows)
    return {name: spec.model_copy(update={"threads": config.measure.threads}) for name, spec in forms.items()}


def _make_items(model: nn.Module, target: Target, folder: Path) -> RuntimeSpec | None:
    """The half of a network that reads items, as it was trained: their vectors are made once, while nobody waits."""
    if not isinstance(model, Recommender) or target.items is None:
        return None
    spec = RuntimeSpec(file=ITEMS_FILE, precision="fp32")
    export_onnx(model.items, target.items.width, folder / spec.file)
    return spec


def _check_items(
    attempt: Attempt, model: nn.Module, spec: PackageSpec, folder: Path, dataset: Dataset, config: CompressConfig
) -> None:
    assert isinstance(model, Recommender)
    assert spec.items
    assert spec.target.items
    schema = spec.target.items
    check_operators(folder / spec.items.file)
    batches = (schema.apply_frame(frame) for frame in dataset.frames("validation"))
    runtime = open_runtime(spec.items, folder, config.measure.threads)
    check_parity("items", compare(model.items, runtime, batches, as_vectors=True), config.parity_tolerance)
    attempt.add(spec.items.file, folder / spec.items.file)


def _check_and_measure(
    attempt: Attempt, model: nn.Module, spec: PackageSpec, folder: Path, *, rows: Rows, config: CompressConfig
) -> None:
    sizes, operators = {}, {}
    parities: dict[str, Any] = {}
    latencies: dict[str, Any] = {}
    for name, form in spec.forms.items():
        sizes[name] = (folder / form.file).stat().st_size
        operators[name] = check_operators(folder / form.file)
        runtime = open_runtime(form, folder, config.measure.threads)
        parity = compare(model, runtime, rows.batches(), as_vectors=spec.target.width > 0)
        if name == FLOAT_FORM:
            check_parity(name, parity, config.parity_tolerance)
        require_finite(name, parity)
        require_open_axes(runtime, next(rows.batches())[:3])
        parities[name] = asdict(parity)
        latencies[name] = _latencies(runtime, next(rows.batches()), config)
    attempt.facts.update(size_bytes=sizes, operators=operators, default_form=spec.default_form)
    attempt.measurements.update(latency_ms=latencies, parity=parities, threads=config.measure.threads)


def _latencies(runtime: Runtime, features: np.ndarray, config: CompressConfig) -> dict[str, float]:
    """Batch size -> median ms."""
    measure = config.measure
    return {str(batch): median_milliseconds(runtime, features, batch, measure.repeats) for batch in measure.batches}
