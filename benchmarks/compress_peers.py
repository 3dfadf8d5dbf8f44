"""Olive and NNCF on the float file that our own forms are made of, in an environment of their own."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.servers import ENVIRONMENTS, INSTALL_SECONDS, problem_of
from commands.environment import PROJECT
from modelyard.runtime import RuntimeSpec

# On top of our libraries: what the tools do is compared, not which torch or onnxruntime they do it with.
REQUIREMENTS = ("olive-ai==0.13.0", "nncf==3.4.0", "openvino==2026.4.1")
MAKE_SECONDS = 240
SAMPLES = 300  # NNCF's own default


@dataclass(frozen=True)
class Peer:
    """A program in `benchmarks/peers`, and the kind of quantization asked of it."""

    program: str
    kind: str
    engine: str = "onnxruntime"

    def spec(self, name: str) -> RuntimeSpec:
        """Of the files that it is told to write."""
        if self.engine == "openvino":
            return RuntimeSpec(engine="openvino", file=f"{name}.xml", weights_file=f"{name}.bin", precision="int8")
        return RuntimeSpec(file=f"{name}.onnx", precision="int8")


PEERS = {
    "Olive, dynamic int8": Peer("olive_int8", "dynamic"),
    "Olive, static int8": Peer("olive_int8", "static"),
    "NNCF, int8": Peer("nncf_int8", "plain", "openvino"),
    "NNCF, int8 for transformers": Peer("nncf_int8", "transformer", "openvino"),
}


def quantized_by(
    name: str, float_file: Path, samples: Mapping[str, np.ndarray], folder: Path
) -> tuple[RuntimeSpec | None, str]:
    """What a peer makes of a float file.

    Args:
        name: in `PEERS`.
        samples: input name -> (n, ...) rows to calibrate with.
        folder: for its files.

    Returns:
        The form, or None and why there is none.
    """
    python, problem = environment()
    if python is None:
        return None, problem
    peer, rows = PEERS[name], folder / "samples.npz"
    np.savez(rows, allow_pickle=False, **{key: values[:SAMPLES] for key, values in samples.items()})
    spec = peer.spec(name.replace(",", "").replace(" ", "-").lower())
    program = PROJECT / "benchmarks" / "peers" / f"{peer.program}.py"
    command = [str(python), "-P", str(program), peer.kind, str(float_file), str(rows), str(folder / spec.file)]
    problem = problem_of(command, MAKE_SECONDS, folder)
    return (None, problem) if problem else (spec, "")


@cache
def environment() -> tuple[Path | None, str]:
    """Python of an environment with the peers, made if need be and kept; or None and why it could not be made."""
    ours = sysconfig.get_path("purelib")
    key = hashlib.sha256("\n".join([*REQUIREMENTS, ours, sys.version]).encode()).hexdigest()[:8]
    folder = ENVIRONMENTS / f"compress-{key}"
    python, made = folder / "bin" / "python", folder / "made"
    if made.exists():
        return python, ""
    venv.create(folder, with_pip=True, clear=True)
    (folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages" / "ours.pth").write_text(
        f"{ours}\n"
    )  # fmt: skip
    problem = problem_of([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS], INSTALL_SECONDS, folder)
    if problem:
        return None, f"{', '.join(REQUIREMENTS)} cannot be installed: {problem}"
    made.touch()
    return python, ""
