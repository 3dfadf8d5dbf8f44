"""Request ids: whatever the names in them, they read back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelyard.request_ids import RequestId, parse, prefix
from tests.workbench import PROPERTY

ENDPOINTS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
NAMES = st.text(min_size=1, max_size=20).filter(lambda text: text.encode("utf-8", "ignore").decode() == text)


@PROPERTY
@given(ENDPOINTS, st.integers(0, 10**12), st.none() | st.tuples(NAMES, NAMES), st.integers(1, 2**40))
def test_an_id_reads_back(endpoint: str, revision: int, served: tuple[str, str] | None, count: int):
    """Endpoint, revision, model and version come out as they went in, with dots and dashes in names too."""
    text = f"{prefix(endpoint, revision, served, '5c0ffee1')}{count:x}"
    model, version = served or (None, None)
    assert parse(text) == RequestId(endpoint=endpoint, revision=revision, model=model, version=version)
    assert text.isascii()


def test_other_names_are_no_ids():
    """Digests, URIs and names of versions are not taken for one."""
    for name in ("digits@champion", "digits/3", "0a" * 32, "s3://bucket/artifacts/model/ab", "default.1.digits"):
        assert parse(name) is None
