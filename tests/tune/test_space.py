"""Spaces that fit their preset, and those that do not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelyard.errors import ConfigError, MissingExtra
from modelyard.presets import LifecycleConfig, load_preset, preset_text, require_tuning, trial_config
from modelyard.settings import Settings
from modelyard.storage import Store
from modelyard.tune import TuneConfig
from modelyard.tune.sampler import TpeSampler

RATE = "train.optimizer.learning_rate"


def preset(settings: Settings, folder: Path, space: dict[str, Any], **tune: Any) -> LifecycleConfig:
    path = folder / "mine.yaml"
    tree = {"model_name": "mine", "dataset_uri": "s3://a/b", "preprocess": {"target": "y"}, "train": {"batch_size": 8}}
    path.write_text(yaml.safe_dump({**tree, "tune": {"space": space, **tune}}))
    config = load_preset(str(path), Store(settings))
    require_tuning(config)
    return config


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"train.optimizer.learning_rte": {"low": 0.1, "high": 1}}, f"did you mean '{RATE}'"),
        ({"train.optimiser.learning_rate": {"low": 0.1, "high": 1}}, f"did you mean '{RATE}'"),
        ({"batch_size": {"low": 1, "high": 2}}, "did you mean 'train.batch_size'"),
        ({"train.batch_size": {"low": 0, "high": 2}}, "low 0: Input should be greater than or equal to 1"),
        ({"train.batch_size": {"low": 1, "high": 2.5}}, "high 2.5: Input should be a valid integer"),
        ({RATE: {"low": 1, "high": 1000}}, "high 1000: .*less than or equal to 100"),
        ({RATE: {"low": 1, "high": 0.1}}, "low 1 is not below high 0.1"),
        ({RATE: {"low": 0, "high": 0.1, "log": True}}, "log needs a low above 0"),
        ({RATE: {"low": 0.1}}, "give low and high, or choices"),
        ({RATE: {"choices": [0.1]}}, "at least 2 items"),
        ({RATE: {"choices": [0.1, 0.1]}}, "two choices are the same"),
        ({RATE: {"choices": [0.1, 0.2], "low": 0.1}}, "choices stand alone"),
        ({"train.optimizer.name": {"choices": ["adam", "adamm"]}}, "choice 2 'adamm': .*did you mean 'adam'"),
        ({"train.target": {"low": 0, "high": 1}}, "is not tuned: trials run to their limits"),
        ({"preprocess.split.train": {"low": 0.1, "high": 0.7}}, "is not tuned: .*judged on the same rows"),
        ({"train.seed.deep": {"low": 0, "high": 1}}, "'seed' is a single value"),
        (
            {"train.optimizer": {"choices": [{"name": "sgd"}, {"name": "adam"}]}, RATE: {"low": 0.1, "high": 1}},
            "is a part of 'train.optimizer'",
        ),
    ],
)
def test_a_wrong_space_is_refused_before_anything_runs(
    settings: Settings, tmp_path: Path, space: dict[str, Any], says: str
):
    """By the key, with the value that it does not take or the nearest name there is."""
    with pytest.raises(ConfigError, match=f"(?s)^tune.space.*{says}"):
        preset(settings, tmp_path, space)


def test_a_metric_must_be_one_of_the_validation_split(settings: Settings, tmp_path: Path):
    """Those of the task; the loss on the training rows is none."""
    with pytest.raises(ConfigError, match=r"tune.metric: 'acuracy' is not known; did you mean 'accuracy'"):
        preset(settings, tmp_path, {}, metric="acuracy")
    with pytest.raises(ConfigError, match=r"tune.metric: 'train_loss' is not known"):
        preset(settings, tmp_path, {}, metric="train_loss")


def test_a_trial_is_the_preset_with_its_own_values(settings: Settings, tmp_path: Path):
    """Also where the preset leaves the section out; it trains to its limits, for the metric of the tuning."""
    space = {
        RATE: {"low": 0.001, "high": 1},
        "train.model.dropout": {"low": 0, "high": 0.5},
        "train.batch_size": {"low": 8, "high": 64},
        "train.optimizer.nesterov": {"choices": [True, False]},  # right with sgd, which another key may say
        "preprocess.transform.scaling": {"choices": ["standard", "none"]},
    }
    config = preset(settings, tmp_path, space, metric="macro_f1")
    assert config.tuned_now[RATE] == 0.001
    assert config.tuned_whole_numbers == {"train.batch_size"}
    made = trial_config(config, {RATE: 0.1, "train.model.dropout": 0.5, "preprocess.transform.scaling": "none"})
    assert (made.train.optimizer.learning_rate, made.train.model.dropout, made.train.batch_size) == (0.1, 0.5, 8)
    assert (made.preprocess.transform.scaling, made.train.target, made.train.stop.metric) == ("none", None, "macro_f1")
    with pytest.raises(ConfigError, match=r"train\.optimizer: .*nesterov is sgd's"):
        trial_config(config, {"train.optimizer.nesterov": True})
    best = tmp_path / "best.yaml"
    best.write_text(preset_text(made, "found\nby tuning"))
    assert load_preset(str(best), Store(settings)) == made


def test_tuning_without_optuna_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    """Nothing is computed first."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"the tune flow needs .*optuna.*modelyard\[tuning\]"):
        TpeSampler(TuneConfig(), set(), lower_is_better=False)
