"""From a trained model to a package, for real: torch, ONNX, onnxruntime, MLflow."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch

from modelyard.artifacts import ArtifactRef
from modelyard.catalog import Product
from modelyard.compress import CompressConfig, DynamicInt8, MeasureConfig, StaticInt8, compress, quiet
from modelyard.datasets import Dataset
from modelyard.errors import DataError, MachineBusy
from modelyard.model_package import FLOAT_FORM, ModelPackage
from modelyard.models.build import load_model
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.workbench import (
    ORIGIN,
    blobs,
    digits_dataset,
    own_catalog,
    parquet_bytes,
    quick_model,
    upload,
)

CONFIG = CompressConfig(measure=MeasureConfig(repeats=5))


class Made:
    """A package of the digits, with what it was made of, fetched to local folders."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.catalog = own_catalog(settings)
        self.dataset_ref = digits_dataset(self.catalog)
        self.model_ref = quick_model(self.catalog, self.dataset_ref, epochs=30)
        self.product: Product = compress(self.catalog, self.model_ref, self.dataset_ref, CONFIG, ORIGIN)
        self.folder = folder / "package"
        self.catalog.fetch(self.product.ref, self.folder)
        self.catalog.fetch(self.model_ref, folder / "model")
        self.model = load_model(folder / "model")
        self.dataset = Dataset.fetch(self.catalog, self.dataset_ref, folder / "dataset", ["test"])


@pytest.fixture(scope="module")
def made(store: Store, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Made:
    del store  # it runs
    return Made(settings, tmp_path_factory.mktemp("compress"))


def test_a_package_holds_both_forms(made: Made):
    """The float form and the small one, the transform and what MLflow reads; the sizes are facts."""
    content = made.product.manifest.content
    assert sorted(content.files) == ["MLmodel", "float.onnx", "int8.onnx", "package.json", "transform.json"]
    sizes = content.facts["size_bytes"]
    assert sizes == {form: content.files[f"{form}.onnx"].size for form in (FLOAT_FORM, "int8")}
    assert sizes["int8"] < 0.5 * sizes[FLOAT_FORM]  # of 19 kB; names and scales weigh less in larger networks
    # Each of the two layers takes its input, its weights and its bias from integers, and leaves its output float.
    assert content.facts["operators"]["int8"] == {"DequantizeLinear": 6, "Gemm": 2, "QuantizeLinear": 2, "Relu": 1}
    assert ModelPackage.open(made.folder).form == "int8"


def test_what_depends_on_the_machine_is_outside_the_digest(made: Made):
    """Latency of each form at each batch size, and the parity, are measurements."""
    measured = made.product.manifest.provenance.measurements
    for form in (FLOAT_FORM, "int8"):
        assert set(measured["latency_ms"][form]) == {"1", "32"}
        assert all(value > 0 for value in measured["latency_ms"][form].values())
    assert measured["parity"][FLOAT_FORM]["largest_difference"] < 1e-5
    assert measured["parity"]["int8"]["agreement_fraction"] > 0.9
    assert not set(made.product.manifest.content.facts) & {"latency_ms", "parity"}


def test_the_small_form_answers_as_well(made: Made):
    """On the whole test split it is right about as often: within what evaluation allows by default, 1 %."""
    frame = pd.concat(made.dataset.frames("test"))
    right = {
        form: (ModelPackage.open(made.folder, form).predict(frame)["label"] == frame["label"]).mean()
        for form in (FLOAT_FORM, "int8")
    }
    assert right["int8"] >= right[FLOAT_FORM] - 0.01


def test_answers_do_not_depend_on_the_batch(made: Made):
    """What the endpoint batches together, whoever sent it, is answered to the bit as if each row had come alone."""
    rows = next(made.dataset.frames("test"))[made.dataset.transform.columns].to_numpy()
    package = ModelPackage.open(made.folder)
    alone = np.concatenate([package.outputs(row[None]) for row in rows])
    shuffled = np.random.default_rng(0).permutation(len(rows))
    for some in (np.arange(len(rows)), *np.array_split(shuffled, 9)):
        np.testing.assert_array_equal(package.outputs(rows[some]), alone[some])


@pytest.mark.parametrize("num_rows", [1, 2, 33])
def test_forms_compute_what_the_network_does(made: Made, num_rows: int):
    """For any number of rows: float to rounding, int8 closely enough to answer the same almost always."""
    rows = next(made.dataset.frames("test", num_rows))[made.dataset.transform.columns].to_numpy()
    with torch.inference_mode():
        expected = made.model(torch.from_numpy(made.dataset.transform.apply(rows))).numpy()
    exact = ModelPackage.open(made.folder, FLOAT_FORM).outputs(rows)
    small = ModelPackage.open(made.folder, "int8").outputs(rows)
    np.testing.assert_allclose(exact, expected, atol=1e-4)
    assert np.abs(small - expected).max() < 0.1 * np.abs(expected).max()


def test_the_same_work_has_the_same_bytes(made: Made, settings: Settings):
    """Exported and quantized again elsewhere, the artifact is the same; found again, nothing is done."""
    elsewhere = own_catalog(settings)
    dataset_ref = digits_dataset(elsewhere)
    model_ref = quick_model(elsewhere, dataset_ref, epochs=30)
    again = compress(elsewhere, model_ref, dataset_ref, CONFIG, ORIGIN)
    assert not again.reused
    assert again.ref.digest == made.product.ref.digest
    assert compress(made.catalog, made.model_ref, made.dataset_ref, CONFIG, ORIGIN).reused


@pytest.mark.parametrize("form", [FLOAT_FORM, "int8"])
def test_files_do_not_tell_where_they_were_made(made: Made, form: str):
    """No stack trace, path, version or time is left in the bytes."""
    body = (made.folder / f"{form}.onnx").read_bytes()
    for trace in (b".py", b"site-packages", b"File ", b"/home", torch.__version__.encode()):
        assert trace not in body
    model = onnx.load_from_string(body)
    assert [value.dim_param or value.dim_value for value in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        64,
    ]


@pytest.mark.filterwarnings("ignore::UserWarning:mlflow", "ignore:Any type hint", "ignore::DeprecationWarning")
def test_mlflow_loads_the_folder(made: Made):
    """`mlflow.pyfunc.load_model` opens it through our loader module, and answers as the package does."""
    import mlflow.pyfunc

    frame = next(made.dataset.frames("test"))
    answers = pd.DataFrame(mlflow.pyfunc.load_model(str(made.folder)).predict(frame))
    assert answers["label"].tolist() == ModelPackage.open(made.folder).predict(frame)["label"].tolist()
    assert (answers["label"] == frame["label"]).mean() > 0.9


def test_the_float_form_may_be_the_only_one(made: Made):
    """No technique, no small form: the package still serves."""
    config = CompressConfig(techniques=[], default_form=FLOAT_FORM, measure=MeasureConfig(repeats=1))
    product = compress(made.catalog, made.model_ref, made.dataset_ref, config, ORIGIN)
    assert list(product.manifest.content.facts["size_bytes"]) == [FLOAT_FORM]


def test_forms_are_chosen_by_config(made: Made, tmp_path: Path):
    """Forms of different techniques, or settings of one, live side by side under their names; each says what it needs of the
    machine that serves it."""
    techniques = [StaticInt8(), DynamicInt8(), StaticInt8(form="int8-tensor", per_channel=False, calibration_rows=16)]
    config = CompressConfig(techniques=techniques, measure=MeasureConfig(repeats=1))
    product = compress(made.catalog, made.model_ref, made.dataset_ref, config, ORIGIN)
    made.catalog.fetch(product.ref, tmp_path)
    assert list(product.manifest.content.facts["size_bytes"]) == [FLOAT_FORM, "int8", "int8-dynamic", "int8-tensor"]
    forms = ModelPackage.open(tmp_path).spec.forms
    assert {name: form.instructions for name, form in forms.items() if form.instructions} == {"int8-dynamic": ["vnni"]}
    assert {form.threads for form in forms.values()} == {1}
    for form in ("int8-dynamic", "int8-tensor"):
        assert ModelPackage.open(tmp_path, form).outputs(np.zeros((1, 64))).shape == (1, 10)


def test_nothing_is_converted_while_somebody_measures(made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Forms that are named wait for a search's measuring as its own candidates do, within a bound."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(quiet, "MACHINE_SECONDS", 0.1)
    config = CompressConfig(techniques=[], default_form=FLOAT_FORM, measure=MeasureConfig(repeats=2))
    with quiet.measuring(5), pytest.raises(MachineBusy, match="for this machine to build"):
        compress(made.catalog, made.model_ref, made.dataset_ref, config, ORIGIN)


def test_a_data_set_without_the_columns_is_refused(made: Made):
    """The missing columns are named."""
    from modelyard.preprocess import PreprocessConfig, preprocess, snapshot

    folder = upload(made.catalog.store, {"1.parquet": parquet_bytes(blobs())})
    other: ArtifactRef = preprocess(
        made.catalog, snapshot(made.catalog, folder, ORIGIN).ref, PreprocessConfig(target="kind"), ORIGIN
    ).ref
    with pytest.raises(DataError, match="lacks columns that the model takes: pixel_0_0"):
        compress(made.catalog, made.model_ref, other, CONFIG, ORIGIN)
