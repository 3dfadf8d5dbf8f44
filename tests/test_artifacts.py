"""Identity: what a digest and a key cover, and what they do not."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelyard.artifacts import (
    ArtifactRef,
    FileEntry,
    Manifest,
    ManifestContent,
    Provenance,
    artifact_key,
    canonical_json,
    digest_of,
)
from tests.workbench import PROPERTY

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def shuffled(value: Any) -> Any:
    """The same value with its keys in another order."""
    if isinstance(value, dict):
        keys = random.sample(list(value), len(value))
        return {key: shuffled(value[key]) for key in keys}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


def manifest(**provenance: Any) -> Manifest:
    content = ManifestContent(
        kind="dataset", files={"a": FileEntry(size=1, sha256="0" * 64)}, config={"x": 1.5}, code_version="c"
    )
    details: dict[str, Any] = {
        "attempt_id": "one",
        "created_at": "2026-11-22T00:00:00+00:00",
        "machine": "here",
    } | provenance
    return Manifest(content=content, provenance=Provenance(**details))


@PROPERTY
@given(VALUES)
def test_order_of_keys_does_not_matter(value: Any):
    """One value has one canonical form, however its dictionaries were filled."""
    assert canonical_json(shuffled(value)) == canonical_json(value)


@PROPERTY
@given(VALUES, VALUES)
def test_different_values_differ(one: Any, other: Any):
    """Two values share a canonical form only if JSON cannot tell them apart."""
    if canonical_json(one) == canonical_json(other):
        assert digest_of(one) == digest_of(other)
        assert one == other


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_lacks_is_refused(number: float):
    """NaN has no canonical form: better an error than two digests for one result."""
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"loss": number})


def test_umlauts_are_utf8():
    """Names are kept as they are, not escaped."""
    assert canonical_json({"ä": 1}) == '{"ä":1}'.encode()


def test_digest_ignores_the_occasion():
    """Another attempt, day, machine or place is the same artifact."""
    elsewhere = manifest(
        attempt_id="two", created_at="2027-01-01T00:00:00+00:00", machine="there", input_uris={"x": "s3://b"}
    )
    assert elsewhere.digest == manifest().digest


def test_digest_survives_json():
    """A manifest read back from the store has the digest it was written with."""
    assert Manifest.model_validate_json(manifest().model_dump_json()).digest == manifest().digest


@pytest.mark.parametrize("uri", ["s3://b/other/attempts/1/a", "s3://b/part/attempts/../../other/a", "s3://b/part/a"])
def test_files_lie_nowhere_but_in_an_input(uri: str):
    """A manifest that sends its reader to another folder is none."""
    assert (
        manifest(input_uris={"p": "s3://b/part"}, elsewhere={"a": "s3://b/part/attempts/1/a"})
        .file_uri("s3://b/whole", "a")
        .endswith("/part/attempts/1/a")
    )
    with pytest.raises(ValidationError, match="folder of no input"):
        manifest(input_uris={"p": "s3://b/part"}, elsewhere={"a": uri})


def test_key_covers_everything_the_work_depends_on():
    """Another stage, config, input or code is other work."""
    keys = {
        artifact_key("dataset", {"a": 1}, {"x": "d"}, "c"),
        artifact_key("model", {"a": 1}, {"x": "d"}, "c"),
        artifact_key("dataset", {"a": 2}, {"x": "d"}, "c"),
        artifact_key("dataset", {"a": 1}, {"x": "e"}, "c"),
        artifact_key("dataset", {"a": 1}, {"y": "d"}, "c"),
        artifact_key("dataset", {"a": 1}, {"x": "d"}, "f"),
    }
    assert len(keys) == 6


def test_reference_survives_json():
    """A reference crosses a task boundary as JSON."""
    ref = ArtifactRef(uri="s3://b/k", digest="a" * 64, kind="model")
    assert ArtifactRef.model_validate_json(ref.model_dump_json()) == ref
    assert str(ref) == "model@aaaaaaaaaaaa"


@pytest.mark.parametrize("change", [{"digest": "abc"}, {"kind": "frame"}, {"path": "/tmp"}])
def test_wrong_references_are_refused(change: dict[str, str]):
    """A short digest, an unknown kind or a further key is no reference."""
    with pytest.raises(ValidationError):
        ArtifactRef.model_validate({"uri": "s3://b/k", "digest": "a" * 64, "kind": "model"} | change)
