"""Presets and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.errors import ConfigError
from modelyard.presets import load_preset, preset_names, require_lifecycle, require_tuning
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


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.optimiser.name=adam", r"train\.optimiser: .*did you mean 'optimizer'\?"),
        ("train.epochs=3", r"train\.epochs: .*did you mean 'max_epochs'\?"),
        ("train.model={hidden_sizes: [8]}", r"train\.model: say its kind as well, as one of mlp, cnn"),
        ("train.model={kind: mpl}", r"train\.model: kind 'mpl' is not known; did you mean 'mlp'\?"),
        ("train.model={kind: cnn, imago: [8, 8]}", r"train\.model\.image: Field required"),
        ("train.optimizer=adam", r"train\.optimizer: a section, with keys below it: learning_rate, "),
        ("preprocess.task=classify", r"preprocess\.task: .*did you mean 'classification'\?"),
        ("compress.techniques=[{technique: int9}]", r"compress\.techniques\.0: technique 'int9' is not known"),
        ("train.nodes=1:4", r'train\.nodes: write it in quotes: "2", or "1:4"'),
        ("train.target=nan", r"train\.target: nan is no number that can be kept"),
        ("train.silence_seconds=.inf", r"train\.silence_seconds: inf is no number"),
        ("train.schedule={warmup_steps: 9, total_steps: 9}", r"train\.schedule: warmup_steps 9 leave nothing"),
    ],
)
def test_a_wrong_key_is_answered_by_what_to_write(offline: Store, override: str, sentence: str):
    """The key as its author wrote it, the nearest known name, and none of the validator's own terms."""
    with pytest.raises(ConfigError, match=f"^{sentence}"):
        load_preset("digits", offline, [override])


def test_of_very_many_names_the_closest_are_said(offline: Store):
    """Nobody reads a hundred keys."""
    space = "tune.space={train.foo: {low: 1, high: 2}}"
    with pytest.raises(ConfigError, match=r"'train\.foo' is not known.* There are \d+, ") as refused:
        require_tuning(load_preset("digits", offline, [space]))
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("preset", "override", "sentence"),
    [
        ("digits", "preprocess.task=regression", r"evaluate\.metric: regression has no accuracy; it has r2"),
        ("text", "train.seed=1", r"preprocess\.task: language_modelling is trained and judged, and not served yet"),
    ],
)
def test_what_a_lifecycle_cannot_end_with_does_not_begin(offline: Store, preset: str, override: str, sentence: str):
    """A gate that has nothing to look at, or a task without a server, is told before hours of training."""
    with pytest.raises(ConfigError, match=sentence):
        require_lifecycle(load_preset(preset, offline, [override]))
    require_lifecycle(load_preset("digits", offline))


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
