"""Two parsers, one meaning: the quick one for plain requests may never see more or less than the careful one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.serve import protocol_v2
from modelyard.serve.datatypes import DATATYPES, BadRequestError
from modelyard.serve.protocol_v2 import InferRequest

numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.none(), st.text(max_size=2), st.just([1])
)
plain_numbers = st.one_of(st.integers(-300, 300), st.floats(-1e3, 1e3))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Requests that are right, nearly right and wrong in one place."""
    data = draw(st.one_of(st.lists(plain_numbers, max_size=6), st.lists(numbers, max_size=6), numbers))
    size = len(data) if isinstance(data, list) else 1
    tensor: dict[str, Any] = {
        "name": draw(st.sampled_from(["features"] * 9 + ["x"])),
        "datatype": draw(st.sampled_from([*DATATYPES, "BOOL"])),
        "shape": draw(st.sampled_from([[1, size], [size, 1], [2, size // 2], [size], [1.0, size], [True, size]])),
        "data": data,
    }
    if draw(st.booleans()):
        tensor["parameters"] = draw(st.sampled_from([{}, {"a": 1}, 5]))
    if draw(st.integers(0, 9)) == 0:
        del tensor[draw(st.sampled_from(sorted(tensor)))]
    document = {"inputs": [tensor]} | draw(st.sampled_from([{}, {"id": "a"}, {"id": 5}, {"outputs": []}, {"id": None}]))
    return json.dumps(document).encode()


def outcome(body: bytes) -> tuple[Any, ...] | str:
    """What the careful parser makes of it."""
    try:
        request = protocol_v2._parse_any(body, None)
    except BadRequestError:
        return "refused"
    return described(request)


def described(request: InferRequest) -> tuple[Any, ...]:
    rows = request.rows
    return request.id, request.outputs, request.binary, rows.dtype, rows.shape, rows.tobytes()


@given(bodies())
def test_the_quick_parser_never_disagrees(body: bytes):
    """It gives the same request as the careful one, or leaves it to that one; it refuses only what that one refuses."""
    try:
        quick = protocol_v2._parse_plain(body)
    except BadRequestError:
        assert outcome(body) == "refused"
    else:
        assert quick is None or described(quick) == outcome(body)


@pytest.mark.parametrize("again", ['"datatype": "INT8", ', '"shape": null, ', '"name": "x", '])
def test_a_key_that_is_there_twice_has_one_meaning(again: str):
    """Parsers differ in which of the two they take: the quick one leaves such a request to the careful one."""
    tensor = '"name": "features", "datatype": "FP32", "shape": [1, 2], "data": [1, 2.5]'
    assert protocol_v2._parse_plain(f'{{"inputs": [{{{tensor}}}]}}'.encode())
    assert protocol_v2._parse_plain(f'{{"inputs": [{{{again}{tensor}}}]}}'.encode()) is None
    assert protocol_v2._parse_plain(f'{{"id": "a", "id": "b", "inputs": [{{{tensor}}}]}}'.encode()) is None


def test_the_quick_parser_is_used():
    """An ordinary request does not take the careful way."""
    body = json.dumps(
        {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 2], "data": [1, 2.5]}], "id": "a"}
    ).encode()
    request = protocol_v2._parse_plain(body)
    assert request
    assert request.id == "a"
    np.testing.assert_array_equal(request.rows, np.array([[1, 2.5]], dtype=np.float32), strict=True)
