"""Where settings come from, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.errors import ConfigError
from modelyard.settings import load_settings


@pytest.fixture(autouse=True)
def an_empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, and no setting of the session's."""
    for variable in ("MODELYARD_HOME", "MODELYARD_ENV_FILE", "MODELYARD_STORE_PORT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MODELYARD_STORE_PORT", "99999"), ("MODELYARD_LOG_LEVEL", "LOUD"), ("MODELYARD_BUCKET", "Not A Bucket")],
)
def test_a_bad_value_names_its_variable(variable: str, value: str, monkeypatch: pytest.MonkeyPatch):
    """The error names the variable as the user wrote it, and repeats the value."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert refused.value.field == variable
    assert value in str(refused.value)


def test_precedence(an_empty_place: Path, monkeypatch: pytest.MonkeyPatch):
    """Arguments win over the environment, that over `.env`, that over the secrets folder, that over defaults."""
    secrets = an_empty_place / ".modelyard" / "secrets"
    secrets.mkdir(parents=True)
    assert load_settings().s3_access_key is None
    (secrets / "modelyard_s3_access_key").write_text("from secrets")
    assert load_settings().s3_access_key == "from secrets"
    (an_empty_place / ".env").write_text("MODELYARD_S3_ACCESS_KEY=from dotenv\n")
    assert load_settings().s3_access_key == "from dotenv"
    monkeypatch.setenv("MODELYARD_S3_ACCESS_KEY", "from environment")
    assert load_settings().s3_access_key == "from environment"
    assert load_settings(s3_access_key="from arguments").s3_access_key == "from arguments"


def test_home_of_dotenv_decides_where_secrets_are(an_empty_place: Path):
    """The home folder may itself come from `.env`; it is absolute, and its secrets are found."""
    home = an_empty_place / "elsewhere"
    (home / "secrets").mkdir(parents=True)
    (home / "secrets" / "modelyard_s3_secret_key").write_text("hidden")
    (an_empty_place / ".env").write_text("MODELYARD_HOME=elsewhere\n")
    settings = load_settings()
    assert settings.home == home
    assert settings.s3_secret_key is not None
    assert settings.s3_secret_key.get_secret_value() == "hidden"


def test_an_empty_variable_is_no_value(monkeypatch: pytest.MonkeyPatch):
    """`MODELYARD_S3_ENDPOINT_URL=` means embedded, as in the example file."""
    monkeypatch.setenv("MODELYARD_S3_ENDPOINT_URL", "")
    assert load_settings().s3_endpoint_url is None


def test_a_secret_is_not_printed():
    """Showing settings shows no secret."""
    assert "hush-hush" not in repr(load_settings(s3_secret_key="hush-hush"))


def test_the_example_file_holds_the_defaults_of_every_setting(an_empty_place: Path):
    """`.env.example` names every setting; uncommented as it stands, it changes nothing."""
    example = (Path(__file__).parent.parent / ".env.example").read_text()
    lines = [line.removeprefix("# ") for line in example.splitlines() if line.startswith("# MODELYARD_")]
    before = load_settings()
    (an_empty_place / ".env").write_text("\n".join(lines))
    assert load_settings() == before
    named = {line.partition("=")[0] for line in lines}
    assert named == {f"MODELYARD_{field.upper()}" for field in type(before).model_fields}
