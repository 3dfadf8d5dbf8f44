"""Presets and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.errors import ConfigError
from modelyard.presets import load_preset, preset_names, require_tuning
from modelyard.settings import Settings
from modelyard.storage import Store


@pytest.fixture
def offline(settings: Settings) -> Store:
    """A store that nobody asks anything: presets by name or path need none."""
    return Store(settings)


def test_every_preset_that_comes_with_modelyard_is_valid(offline: Store):
    """A preset in deployments/presets cannot rot."""
    assert "digits" in preset_names()
    for name in preset_names():
        config = load_preset(name, offline)
        assert config.dataset_uri.startswith(f"{offline.root}/")
        require_tuning(config)


def test_override_reaches_its_key_with_its_type(offline: Store):
    """Values are read as YAML, so numbers, lists and null arrive as such."""
    config = load_preset(
        "digits", offline, ["train.max_epochs=5", "train.model.hidden_sizes=[64, 32]", "train.target=null"]
    )
    assert (config.train.max_epochs, config.train.model.hidden_sizes, config.train.target) == (5, (64, 32), None)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("train.max_epochz=5", r"train\.max_epochz"),
        ("train.max_epochs=many", r"train\.max_epochs"),
        ("train.max_epochs=0", r"train\.max_epochs"),
        ("train.model.kind=rnn", r"train\.model"),
        ("train.seed.deep=1", r"train\.seed\.deep|train\.seed"),
        ("no equals sign", "overrides"),
        ("preprocess.split.train=0.9", r"preprocess\.split"),
        ("model_name=Not A Name", "model_name"),
    ],
)
def test_bad_override_names_its_field(offline: Store, override: str, field: str):
    """A wrong key or value is refused before anything runs, by the name the user wrote."""
    with pytest.raises(ConfigError, match=f"^{field}"):
        load_preset("digits", offline, [override])


def test_preset_may_lie_in_the_bucket(store: Store):
    """A team's own preset needs no change of this repository: a URI will do."""
    uri = f"{store.root}/tests/presets/mine.yaml"
    store.put(uri, b"model_name: mine\ndataset_uri: s3://somewhere/else/*.csv\npreprocess: {target: y}\n")
    assert load_preset(uri, store).model_name == "mine"


@pytest.mark.parametrize("text", ["- a list", "a: [unclosed", "preprocess: {target: y}"])
def test_broken_preset_is_a_config_error(offline: Store, tmp_path: Path, text: str):
    """Neither bad YAML nor a missing key becomes a stack trace."""
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_preset(str(path), offline)


def test_unknown_preset_lists_the_known_ones(offline: Store):
    """The sentence helps a person who mistyped."""
    with pytest.raises(ConfigError, match="digits"):
        load_preset("digitz", offline)


def test_the_own_bucket_is_named_anywhere(offline: Store):
    """Data, tokenizer and network may lie in it; an address in another bucket stays as it is."""
    config = load_preset("digits", offline, [
        "train.model={kind: huggingface, source: 's3://{bucket}/networks/one'}",
        ("preprocess={target: mood, features: [text], columns: {text: {type: text}},"
        " transform: {text: {source: 's3://other/networks/{bucket}'}}}"),
    ])  # fmt: skip
    assert config.train.model.source == f"{offline.root}/networks/one"
    assert config.preprocess.transform.text.source == "s3://other/networks/{bucket}"
    assert config.dataset_uri == f"{offline.root}/raw/digits/*.parquet"
