"""Engines behind the `Runtime` protocol. Adding one is a class here and a line in `ENGINES`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from pydantic import Field

from modelyard.artifacts import Frozen
from modelyard.errors import ConfigError, DataError

EngineName = Literal["onnxruntime"]


class RuntimeSpec(Frozen):
    """One form of a model: which engine executes which file, at which precision."""

    engine: EngineName = "onnxruntime"
    file: str
    precision: str = Field(description="fp32, int8, ...")


class Runtime(Protocol):
    """A loaded model. `run` may be called from one thread at a time."""

    input_width: int

    def run(self, features: np.ndarray) -> np.ndarray:
        """Network input (n, input_width) float32 to raw outputs (n, k) float32, for any n >= 1."""
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
        self.input_width = int(self._session.get_inputs()[0].shape[1])

    def run(self, features: np.ndarray) -> np.ndarray:
        return np.asarray(self._session.run(self._output, {self._input: features})[0])


ENGINES: dict[str, Callable[[Path, int], Runtime]] = {"onnxruntime": OnnxRuntime}


def preload() -> None:
    """Load the engine that models use, before it is known which model: a process that waits for one has the time."""
    import onnxruntime  # noqa: F401


def open_runtime(spec: RuntimeSpec, folder: Path, threads: int = 1) -> Runtime:
    """Load one form of a model from the folder that holds its file.

    Raises:
        ConfigError: an engine this installation does not have.
        DataError: a file the engine cannot load.
    """
    if spec.engine not in ENGINES:
        raise ConfigError("engine", f"{spec.engine!r} is not an engine; known: {', '.join(ENGINES)}")
    return ENGINES[spec.engine](folder / spec.file, threads)
