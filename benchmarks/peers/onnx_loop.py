"""A text model alone, batch after batch on one thread: what one core gives when nothing else is done.

    python -m benchmarks.peers.onnx_loop <model.onnx> <tokens.npy> <seconds>

Says that it is warm, begins with a line on standard input, and prints rows a second. Tokens are (n, t) int64.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from benchmarks.peers.onnx_model import open_session


def main(model: str, tokens: str, seconds: float) -> None:
    session, rows = open_session(model), np.load(tokens)
    inputs = {session.get_inputs()[0].name: rows}
    session.run(None, inputs)
    print("warm", flush=True)
    sys.stdin.readline()
    began, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        session.run(None, inputs)
        done += len(rows)
    print(done / passed, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
