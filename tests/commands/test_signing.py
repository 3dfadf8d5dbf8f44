"""`modelyard signing`: keys are made, shown and let go, and artifacts signed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from commands.main import app
from modelyard.settings import Settings
from modelyard.signing.keys import trusted_keys
from modelyard.signing.verify import verify
from modelyard.storage import Store
from tests.serve.packages import publish_version


@pytest.fixture
def home(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without keys, over the session's store."""
    secret = settings.s3_secret_key
    given = {"HOME": tmp_path, "S3_ENDPOINT_URL": settings.store_url, "S3_ACCESS_KEY": settings.s3_access_key}
    given["S3_SECRET_KEY"] = secret.get_secret_value()
    for name, value in given.items():
        monkeypatch.setenv(f"MODELYARD_{name}", str(value))
    return tmp_path


def run(*words: str, status: int = 0) -> str:
    done: Result = CliRunner().invoke(app, ["signing", *words])
    assert done.exit_code == status, done.output
    return done.output + done.stderr


def test_a_key_is_rotated_and_an_artifact_signed_by_hand(home: Path, store: Store):
    """After a rotation the new key signs and both are listed; what it signs by hand convinces with its public half."""
    run("rotate")
    run("rotate")
    first, second = run("list").splitlines()
    old, new = (first, second) if second.endswith("signs") else (second, first)
    assert new.endswith("signs")
    version = publish_version(store, "1", is_signed=False)
    uri = run("sign", version.artifact.digest).strip()
    trusted = trusted_keys(home / "trusted-keys")
    manifest = store.get(f"{version.artifact.uri}/manifest.json")
    assert verify(manifest, {Path(uri).stem: store.get(uri)}, trusted) == new.split()[0]
    run("distrust", old[:16])
    assert run("list").splitlines() == [new]


def test_what_does_not_fit_is_said(home: Path):
    """No key to sign with, a key nobody knows, a name too many or none: one sentence each."""
    assert "there is no trusted key" in run("list")
    assert "0 trusted keys begin with 'ab'" in run("distrust", "ab", status=1)
    assert "takes a name" in run("sign", status=1)
    assert "takes no name" in run("rotate", "mine", status=1)
