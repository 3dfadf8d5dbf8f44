"""A region is a file: a store and an endpoint of its own, the rest from home."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.errors import ConfigError
from modelyard.regions import region_settings
from modelyard.settings import Settings, load_settings

EU = "MODELYARD_BUCKET=eu-models\nMODELYARD_S3_ENDPOINT_URL=http://s3.eu:1\nMODELYARD_ENDPOINT_URL=http://eu:2\n"


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    (tmp_path / "regions").mkdir()
    return load_settings(home=tmp_path, s3_access_key="home's", endpoint_admin_token="home's")


def write(home: Settings, name: str, text: str, mode: int = 0o600) -> None:
    path = home.regions_folder / f"{name}.env"
    path.write_text(text)
    path.chmod(mode)


def test_a_region_has_its_own_store_and_endpoint(home: Settings, monkeypatch: pytest.MonkeyPatch):
    """What its file names is its own, whatever the environment says; the rest is home's."""
    monkeypatch.setenv("MODELYARD_BUCKET", "not-this-one")
    write(home, "eu", EU)
    region = region_settings(home, "eu")
    assert (region.bucket, region.store_url, region.serving_url) == ("eu-models", "http://s3.eu:1", "http://eu:2")
    assert region.s3_access_key == "home's"
    assert region.signing_key_file == home.signing_key_file


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (EU.replace("MODELYARD_ENDPOINT_URL", "MODELYARD_ENDPOINT_NAME"), 0o600, "does not say MODELYARD_ENDPOINT_URL"),
        (EU + "MODELYARD_MLFLOW_TRACKING_URI=http://x\n", 0o600, "sets MODELYARD_MLFLOW_TRACKING_URI"),
        (EU.replace("eu-models", "Not A Bucket"), 0o600, "MODELYARD_BUCKET"),
        (EU, 0o644, "chmod 600"),
    ],
)
def test_a_region_that_does_not_fit_is_refused(home: Settings, text: str, mode: int, words: str):
    """By its file, and by the variable."""
    write(home, "eu", text, mode)
    with pytest.raises(ConfigError, match=words):
        region_settings(home, "eu")


def test_an_unknown_region_names_those_there_are(home: Settings):
    """As a typing error in a preset would."""
    write(home, "eu", EU)
    with pytest.raises(ConfigError, match="known regions: eu"):
        region_settings(home, "ue")
