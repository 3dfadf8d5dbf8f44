"""Engines behind the `Runtime` protocol. Adding one is a class here and a line in `ENGINES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from pydantic import Field

from modelyard.artifacts import Frozen
from modelyard.errors import ConfigError, DataError
from modelyard.runtime.hosts import require_cores, require_host
from modelyard.runtime.tokens import answer_tokens

EngineName = Literal["onnxruntime", "openvino", "torch"]


class RuntimeSpec(Frozen):
    """One form of a model: which engine executes which file, at which precision, on what kind of machine.

    Attributes:
        precision: fp32, int8, ...
        weights_file: a second file that ``file`` refers to (OpenVINO keeps weights apart).
        device: the engine's device.
        instructions: what the processor must have (`modelyard.runtime.hosts.INSTRUCTIONS`): without it the form would
            be slower than measured or answer something else than was judged.
        threads: that it was measured with, and is served with; None: it was not measured.
    """

    engine: EngineName = "onnxruntime"
    file: str
    precision: str = Field(description="fp32, int8, ...")
    weights_file: str | None = None
    device: Literal["cpu"] = "cpu"
    instructions: list[str] = Field(default_factory=list)
    threads: int | None = None

    @property
    def files(self) -> list[str]:
        """All files of the form."""
        return [self.file, *([self.weights_file] if self.weights_file else [])]

    def size_bytes(self, folder: Path) -> int:
        """Of all its files in the folder that holds them."""
        return sum((folder / name).stat().st_size for name in self.files)


class Runtime(Protocol):
    """A loaded model. `run` may be called from one thread at a time."""

    input_width: int

    def run(self, features: np.ndarray) -> np.ndarray:
        """Network input (n, input_width) float32, or tokens (n, t) int64 and `NO_TOKEN` where there is none, to raw
        outputs (n, k) float32, for any n >= 1."""
        ...

    def run_named(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """The same for a network of several inputs: input name -> (n, ...), to its first output (n, ...)."""
        ...


class OnnxRuntime:
    """onnxruntime on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime  # 60 MB: only where a model is really executed

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads that spin would take the core from the neighbour that has work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as failure:  # onnxruntime's own errors share no base class
            raise DataError(f"{path.name}: onnxruntime cannot load it: {failure}") from failure
        self._input = self._session.get_inputs()[0].name
        self._output = [self._session.get_outputs()[0].name]
        self.input_width = _width(self._session.get_inputs()[0].shape)

    def run(self, features: np.ndarray) -> np.ndarray:
        return answer_tokens(self._answer, features) if features.dtype.kind == "i" else self._answer(features)

    def _answer(self, features: np.ndarray) -> np.ndarray:
        return self.run_named({self._input: features})

    def run_named(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(self._session.run(self._output, dict(inputs))[0])


class OpenVino:
    """OpenVINO on the CPU. It computes in bf16 only where the form's precision says so, not by itself."""

    def __init__(self, path: Path, threads: int, precision: str) -> None:
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "ENABLE_CPU_PINNING": False,
        }
        try:
            model = core.read_model(str(path))
            self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError as failure:
            raise DataError(f"{path.name}: OpenVINO cannot load it: {failure}") from failure
        self._input = model.inputs[0].get_any_name()
        shape = model.inputs[0].get_partial_shape()
        self.input_width = _width([None if one.is_dynamic else one.get_length() for one in shape])

    def run(self, features: np.ndarray) -> np.ndarray:
        return answer_tokens(self._answer, features) if features.dtype.kind == "i" else self._answer(features)

    def _answer(self, features: np.ndarray) -> np.ndarray:
        return self.run_named({self._input: features})

    def run_named(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        # Shared inputs are read where they lie; outputs are copied, because the next call overwrites them.
        answer = self._request.infer(dict(inputs), share_inputs=True, share_outputs=False)
        return np.asarray(next(iter(answer.values())), dtype=np.float32)


class TorchProgram:
    """A `torch.export` program (``.pt2``), executed by torch itself."""

    def __init__(self, path: Path, threads: int) -> None:
        import torch

        from modelyard.runtime.torch_program import load_program

        torch.set_num_threads(threads)
        self._torch = torch
        self._module, self.input_width = load_program(path)

    def run(self, features: np.ndarray) -> np.ndarray:
        return answer_tokens(self._of_rows, features) if features.dtype.kind == "i" else self._of_rows(features)

    def _of_rows(self, features: np.ndarray) -> np.ndarray:
        return self._answer([self._torch.from_numpy(features)])

    def run_named(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._answer([self._torch.from_numpy(values) for values in inputs.values()])

    def _answer(self, inputs: list) -> np.ndarray:
        with self._torch.inference_mode():
            return self._module(*inputs).float().numpy()


ENGINES: dict[str, Callable[[Path, int, str], Runtime]] = {
    "onnxruntime": lambda path, threads, _: OnnxRuntime(path, threads),
    "openvino": OpenVino,
    "torch": lambda path, threads, _: TorchProgram(path, threads),
}


def preload() -> None:
    """Load the engine that models use, before it is known which model: a process that waits for one has the time."""
    import onnxruntime  # noqa: F401


def open_runtime(spec: RuntimeSpec, folder: Path, threads: int | None = None) -> Runtime:
    """Load one form of a model from the folder that holds its file.

    Args:
        threads: None: as it was measured, or 1.

    Raises:
        ConfigError: an engine that Modelyard does not know.
        MissingExtra: an engine this installation does not have.
        HostUnfit: this machine lacks an instruction set that the form needs, or cores for the threads that it was measured
            with, where no other number is said.
        DataError: a file the engine cannot load.
    """
    if spec.engine not in ENGINES:
        raise ConfigError("engine", f"{spec.engine!r} is not an engine; known: {', '.join(ENGINES)}")
    form = Path(spec.file).stem
    require_host(form, spec.engine, spec.instructions)
    if threads is None:
        threads = spec.threads or 1
        require_cores(form, threads)
    return ENGINES[spec.engine](folder / spec.file, threads, spec.precision)


def _width(shape: list) -> int:
    """The second dimension of an input; 0 where it is open, as a sequence's length is."""
    return shape[1] if len(shape) > 1 and isinstance(shape[1], int) else 0
