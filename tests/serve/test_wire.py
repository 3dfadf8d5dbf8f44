"""Frames between router and worker."""

from __future__ import annotations

import numpy as np
import pytest

from modelyard.serve.wire import FrameReader, Kind, frame, pack_tensors, unpack_tensors


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_frames_survive_any_cutting(step: int):
    """However the stream is cut, the same frames come out in order."""
    sent = [(number, Kind.ANSWER, bytes([number]) * size) for number, size in enumerate([0, 1, 500, 0, 3])]
    stream = b"".join(frame(*one) for one in sent)
    reader, received = FrameReader(), []
    for begin in range(0, len(stream), step):
        received += reader.feed(stream[begin : begin + step])
    assert received == sent


def test_tensors_come_back_as_they_went():
    """Names, shapes, types and values of arrays and texts survive, NaN included."""
    tensors = {
        "outputs": np.array([[1.5, np.nan], [np.inf, -0.0]], dtype=np.float32),
        "rows": np.arange(6, dtype=np.float64).reshape(2, 3),
        "label": np.array([2**62, -1]),
        "names": ["ä", ""],
    }
    returned = unpack_tensors(pack_tensors(tensors))
    assert list(returned) == list(tensors)
    assert returned["names"] == tensors["names"]
    for name in ("outputs", "rows", "label"):
        np.testing.assert_array_equal(returned[name], tensors[name], strict=True)
