"""Engines on forms of one small network: the same answers from each, and refusals that name what is missing."""

from __future__ import annotations

import copy
import os
import pickle
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import orjson
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from modelyard.compress import Float32, NncfInt8
from modelyard.compress.forms import make_form
from modelyard.compress.techniques import FormTechnique
from modelyard.errors import ConfigError, DataError, HostUnfit, MissingExtra
from modelyard.model_package import PACKAGE_FILE, TRANSFORM_FILE, PackageSpec
from modelyard.runtime import RuntimeSpec, open_runtime
from modelyard.runtime.engines import OnnxRuntime
from modelyard.runtime.hosts import has_instruction
from modelyard.serve.wire import HEADER, Kind, frame, pack_tensors, unpack_tensors
from modelyard.task_kinds import Target
from modelyard.transform import FeatureScale, FittedTransform

WIDTH = 6
ROWS = np.random.default_rng(0).normal(size=(64, WIDTH)).astype(np.float32)
FLOAT = "float"
TECHNIQUES: dict[str, tuple[FormTechnique | None, float]] = {
    "float": (None, 1e-5),
    "openvino": (Float32(), 1e-5),
    "openvino-bf16": (Float32(precision="bf16"), 0.02),
    "openvino-int8": (NncfInt8(), 0.1),
    "torch": (Float32(engine="torch"), 1e-5),
    "torch-bf16": (Float32(engine="torch", precision="bf16"), 0.02),
}


class Forms:
    """Forms of one network in one folder, each made when it is asked for first."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder = folder
        self.network = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
        self.specs: dict[str, RuntimeSpec] = {}

    def spec(self, name: str) -> RuntimeSpec:
        if name not in self.specs:
            self.specs[name] = self._made(name)
        return self.specs[name]

    def _made(self, name: str) -> RuntimeSpec:
        technique, file = TECHNIQUES[name][0], self.folder / "float.onnx"
        if technique is None:
            onnx.save(two_layers(self.network), file)
            return RuntimeSpec(file=file.name, precision="fp32")
        self.spec(FLOAT)
        network = copy.deepcopy(self.network)
        return make_form(network, WIDTH, self.folder, name, technique, calibration=ROWS, float_file=file)


def two_layers(network: nn.Sequential) -> onnx.ModelProto:
    """The network as ONNX by hand: torch's exporter takes seconds to load."""
    weights = {f"n{name}": tensor.numpy() for name, tensor in network.state_dict().items()}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "n0.weight", "n0.bias"], ["h"], transB=1),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("Gemm", ["a", "n2.weight", "n2.bias"], ["y"], transB=1),
        ],
        "two layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(tensor, name) for name, tensor in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    return Forms(tmp_path_factory.mktemp("forms"))


@pytest.mark.parametrize("name", TECHNIQUES)
def test_each_engine_answers_as_the_network(forms: Forms, name: str):
    """For one row and for many, and its files tell neither where nor by which version they were made."""
    if "bf16" in name and not has_instruction("bf16"):
        pytest.skip("this processor has no bf16 instructions")
    spec = forms.spec(name)
    runtime = open_runtime(spec, forms.folder)
    with torch.inference_mode():
        expected = forms.network(torch.from_numpy(ROWS)).numpy()
    tolerance = TECHNIQUES[name][1] * np.abs(expected).max()
    assert runtime.input_width == WIDTH
    for batch in (1, 2, 64):
        answer = runtime.run(ROWS[:batch])
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected[:batch], atol=tolerance)
    for file in spec.files:
        body = (forms.folder / file).read_bytes()
        assert not [trace for trace in (b"site-packages", b"/tmp/", b"/home") if trace in body]


def test_openvino_files_hold_nothing_that_nobody_asks_for(forms: Forms, tmp_path: Path):
    """Names and shapes of what lies inside are left out, those of inputs and outputs are not; answers are the same bits as those
    of the file that OpenVINO itself writes."""
    import openvino

    spec = forms.spec("openvino")
    forms.spec(FLOAT)
    openvino.save_model(
        openvino.convert_model(forms.folder / "float.onnx"), tmp_path / spec.file, compress_to_fp16=False
    )
    short, whole = (open_runtime(spec, folder) for folder in (forms.folder, tmp_path))
    np.testing.assert_array_equal(short.run(ROWS), whole.run(ROWS))
    description = (forms.folder / spec.file).read_text()
    assert set(re.findall(r'names="([^"]*)"', description)) == {"x", "y"}
    assert len(description) < 0.7 * (tmp_path / spec.file).stat().st_size
    assert spec.weights_file
    assert (forms.folder / spec.weights_file).read_bytes() == (tmp_path / spec.weights_file).read_bytes()


def test_an_answer_outlives_the_next_call(forms: Forms):
    """OpenVINO reuses its output buffer: what was handed out must not change under a reader."""
    runtime = open_runtime(forms.spec("openvino"), forms.folder)
    first = runtime.run(ROWS[:1])
    kept = first.copy()
    runtime.run(ROWS[1:2])
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"instructions": ["amx9"]}, HostUnfit, "instruction set amx9, which this machine"),
        ({"threads": 4096}, HostUnfit, r"measured with 4096 threads, and this process may use \d+ cores"),
        ({"engine": "openvino", "file": "float.xml"}, MissingExtra, r"pip install 'modelyard\[openvino\]'"),
    ],
)
def test_a_host_that_does_not_fit_is_refused_by_name(
    forms: Forms, monkeypatch: pytest.MonkeyPatch, change: dict, kind: type[Exception], sentence: str
):
    """An instruction set that is missing, too few cores, an engine that is not installed: before anything is loaded."""
    monkeypatch.setitem(sys.modules, "openvino", None)  # what an import finds that fails
    with pytest.raises(kind, match=sentence):
        open_runtime(forms.spec(FLOAT).model_copy(update=change), forms.folder)


def test_a_form_is_served_with_the_threads_it_was_measured_with(forms: Forms):
    """Unless another number is said, as evaluation does."""
    spec = forms.spec(FLOAT).model_copy(update={"threads": min(2, os.cpu_count() or 1)})
    for said, expected in ((None, spec.threads), (1, 1)):
        runtime = open_runtime(spec, forms.folder, said)
        assert isinstance(runtime, OnnxRuntime)
        assert runtime._session.get_session_options().intra_op_num_threads == expected


def test_an_unknown_engine_is_refused(forms: Forms):
    """A package from a later version, say."""
    spec = RuntimeSpec.model_construct(engine="abacus", file="x", instructions=[])
    with pytest.raises(ConfigError, match="'abacus' is not an engine; known: onnxruntime, openvino, torch"):
        open_runtime(spec, forms.folder)


class Evil:
    """What a pickle can do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    "place",
    [
        "archive/data/sample_inputs/model.pt",
        "archive/data/aotinductor/model/y.so",
        "archive/data/constants/opaque_obj_0",
        "x/byteorder",
    ],
)
def test_a_program_with_code_in_it_is_refused(forms: Forms, tmp_path: Path, place: str):
    """torch itself would unpickle it; nothing of it runs here."""
    touched, path = tmp_path / "touched", tmp_path / "evil.pt2"
    with zipfile.ZipFile(forms.folder / forms.spec("torch").file) as good, zipfile.ZipFile(path, "w") as evil:
        for name in good.namelist():
            if name != place:
                evil.writestr(name, good.read(name))
        evil.writestr(place, pickle.dumps(Evil(touched)))
    with pytest.raises(DataError, match=r"which could run code where it is loaded"):
        open_runtime(RuntimeSpec(engine="torch", file=path.name, precision="fp32"), tmp_path)
    assert not touched.exists()


TOUCH = "__import__('pathlib').Path('{}').touch()"


def _sizes(tree: dict, touch: str) -> None:
    tree["graph_module"]["graph"]["tensor_values"]["relu"]["sizes"][0]["as_expr"]["expr_str"] = touch


def _guards(tree: dict, touch: str) -> None:
    tree["guards_code"] = [touch]


def _operator(tree: dict, touch: str) -> None:
    del touch
    tree["graph_module"]["graph"]["nodes"][1]["target"] = "torch.os.system"


def _containers(tree: dict, touch: str) -> None:
    del touch
    signature = tree["graph_module"]["module_call_graph"][0]["signature"]
    signature["out_spec"] = signature["out_spec"].replace('"type": null', '"type": "collections.defaultdict"')


def _metadata(tree: dict, touch: str) -> None:
    tree["graph_module"]["graph"]["nodes"][1]["metadata"] = {"stack_trace": touch}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_sizes, r"expr_str __import__"),
        (_guards, r"guards \["),
        (_operator, r"target torch\.os\.system"),
        (_containers, r"out_spec \["),
        (_metadata, r"metadata \{"),
        (None, r"name x=__import__"),
    ],
)
def test_a_graph_that_says_more_than_a_network_is_refused(
    forms: Forms, tmp_path: Path, change: Callable[[dict, str], None] | None, named: str
):
    """torch would evaluate it, where it loads the program or where that is called; nothing of it runs here."""
    touched, path = tmp_path / "touched", tmp_path / "evil.pt2"
    touch = TOUCH.format(touched)
    with zipfile.ZipFile(forms.folder / forms.spec("torch").file) as good, zipfile.ZipFile(path, "w") as evil:
        for name in good.namelist():
            body = good.read(name)
            if name.endswith("models/model.json"):
                tree = orjson.loads(body)
                if change:
                    change(tree, touch)
                body = orjson.dumps(tree)
                if change is None:  # a value's name, of which torch makes an argument of a function
                    body = body.replace(b'"input"', orjson.dumps(f"x={touch}"))
            evil.writestr(name, body)
    with pytest.raises(DataError, match=rf"evil\.pt2 holds {named}.*, which could run code where it is loaded"):
        open_runtime(RuntimeSpec(engine="torch", file=path.name, precision="fp32"), tmp_path)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("engine", "suffix", "sentence"),
    [
        ("onnxruntime", "onnx", "onnxruntime cannot load it"),
        ("openvino", "xml", "OpenVINO cannot load it"),
        ("torch", "pt2", "torch cannot load it"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, engine: str, suffix: str, sentence: str):
    """By every engine in one sentence."""
    (tmp_path / f"x.{suffix}").write_bytes(b"not a model")
    spec = RuntimeSpec.model_validate({"engine": engine, "file": f"x.{suffix}", "precision": "fp32"})
    with pytest.raises(DataError, match=rf"x\.{suffix}: {sentence}"):
        open_runtime(spec, tmp_path)


def test_the_endpoints_worker_serves_an_openvino_form(forms: Forms):
    """A real worker process loads it, says ready and answers rows."""
    spec = forms.spec("openvino-int8")
    target = Target(column="kind", classes=["ant", "bee", "cat"])
    package = PackageSpec(target=target, forms={"small": spec}, default_form="small")
    scales = [FeatureScale(name=f"f{number}", offset=0.0, scale=1.0) for number in range(WIDTH)]
    (forms.folder / PACKAGE_FILE).write_text(package.model_dump_json())
    (forms.folder / TRANSFORM_FILE).write_text(FittedTransform(features=scales).model_dump_json())
    ours, theirs = socket.socketpair()
    worker = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "modelyard.serve.worker",
            "--socket-fd",
            str(theirs.fileno()),
            "--router-pid",
            str(os.getpid()),
        ],
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    with ours, ours.makefile("rb") as stream:
        ours.settimeout(60)
        ours.sendall(frame(0, Kind.LOAD, orjson.dumps({"folder": str(forms.folder), "form": "small"})))
        assert _next(stream)[0] == Kind.READY
        ours.sendall(frame(1, Kind.INFER, pack_tensors({"features": ROWS.astype(np.float64)})))
        kind, payload = _next(stream)
    worker.wait(10)
    assert kind == Kind.ANSWER
    expected = open_runtime(spec, forms.folder).run(ROWS)
    np.testing.assert_allclose(np.asarray(unpack_tensors(payload)["outputs"]), expected, atol=1e-6)


def _next(stream: BinaryIO) -> tuple[int, bytes]:
    length, _, kind = HEADER.unpack(stream.read(HEADER.size))
    return kind, stream.read(length - (HEADER.size - 4))
