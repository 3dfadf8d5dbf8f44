"""What the documentation names exists: commands, targets, deployments, settings, preset keys, files, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

from commands.main import app
from commands.parts import named
from modelyard.presets import LifecycleConfig, load_preset, preset_names
from modelyard.settings import Settings
from modelyard.storage import Store

PROJECT = Path(__file__).resolve().parent.parent
DECISIONS = sorted((PROJECT / "docs" / "decisions").glob("*.md"))
DOCUMENTS = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((PROJECT / "docs").rglob("*.md")),
    *(path for room in ("benchmarks", "deployments") for path in sorted((PROJECT / room).rglob("README.md"))),
]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
OPTION = re.compile(r"^--[a-z-]+$")
VARIABLE = re.compile(r"\bMODELYARD_[A-Z0-9_]*[A-Z0-9]\b")
PRESET_KEY = re.compile(r"^(?:preprocess|train|compress|evaluate|rollout)(?:\.[a-z_0-9]+)+(?<!\.py)$")
FILE = re.compile(r"^[\w.-]+(?:/[\w.-]+)+\.(?:py|yaml|conf|toml|md|png|svg)$")

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))


@pytest.fixture(scope="module")
def program() -> Any:
    """The command line, as its parser sees it."""
    return get_command(app)


@pytest.fixture
def offline(settings: Settings) -> Store:
    """A store that nobody asks anything."""
    return Store(settings)


@every_document
def test_commands_can_be_typed(document: Path, program: Any, offline: Store):
    """Every `modelyard ...`, `make ...` and `prefect deployment run ...` has a command, options and names that exist."""
    for words in _commands(document):
        if words[0] == "modelyard":
            _check_modelyard(program, words[1:], offline)
        elif words[0] == "make":
            targets = {word for word in words[1:] if "=" not in word}
            assert targets <= _make_targets(), words
        else:
            assert words[3] in _deployments(), words


@every_document
def test_settings_are_settings(document: Path):
    """Every `MODELYARD_*` variable that is named is a field of `Settings`."""
    assert set(VARIABLE.findall(document.read_text())) <= _variables()


@every_document
def test_links_lead_somewhere(document: Path):
    """Every relative link and picture has a file, and its anchor a heading."""
    for target in LINK.findall(FENCED.sub("", document.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        assert not anchor or anchor in _anchors(path), target


@every_document
def test_files_and_preset_keys_are_there(document: Path):
    """A span that looks like a file of ours or a key of a preset is one."""
    for span in _spans(document):
        if FILE.match(span) and (PROJECT / span.partition("/")[0]).is_dir():
            assert (PROJECT / span).exists(), span
        elif PRESET_KEY.match(span):
            assert _is_preset_key(span), span
        elif span.partition("/")[0] in _flows() and "/" in span and not span.endswith("/"):
            assert span in _deployments(), span


@every_document
def test_presets_parse(document: Path, offline: Store, tmp_path: Path):
    """Every YAML block is a whole preset."""
    for number, (language, body) in enumerate(FENCED.findall(document.read_text())):
        if language == "yaml":
            path = tmp_path / f"{number}.yaml"
            path.write_text(body)
            load_preset(str(path), offline)


def test_readme_names_every_command_and_target(program: Any):
    """Nothing that can be typed is left out, and options that stand alone belong to some command."""
    text = " ".join((PROJECT / "README.md").read_text().split())
    for name in program.commands:
        assert f"`modelyard {name}" in text
    for target in _make_targets():
        assert f"make {target}" in text
    options = {option for command in program.commands.values() for each in command.params for option in each.opts}
    assert {span for span in _spans(PROJECT / "README.md") if OPTION.match(span)} <= {*options, "--help"}


def test_example_file_names_every_setting():
    """`.env.example` has all settings and no other."""
    assert set(VARIABLE.findall((PROJECT / ".env.example").read_text())) == _variables()


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_is_short_and_whole(decision: Path):
    """Context, decision, consequence, a number of its own, under 25 lines."""
    text = decision.read_text()
    number = decision.name[:4]
    assert [other.name[:4] for other in DECISIONS].count(number) == 1
    assert text.startswith(f"# {number} ")
    assert len(text.splitlines()) < 25
    for part in ("**Context.**", "**Decision.**", "**Consequence.**"):
        assert text.count(part) == 1, part


def _check_modelyard(program: Any, arguments: list[str], store: Store) -> None:
    """Let the command's own parser judge, then the names that only the command itself would judge."""
    if not arguments:
        return
    name, *rest = arguments
    assert name in program.commands, arguments
    given = program.commands[name].make_context(name, rest).params
    if name in ("up", "logs"):
        parts = given["parts"] if name == "up" else [given["part"]] if given["part"] else []
        named(parts or [])
    if name == "run":
        assert given["preset"].endswith(".yaml") or given["preset"] in preset_names()
        assert given["deployment"] in _deployments()
        load_preset("digits", store, given["overrides"] or [])


def _spans(document: Path) -> list[str]:
    return [" ".join(span.split()) for span in SPAN.findall(FENCED.sub("", document.read_text()))]


def _commands(document: Path) -> Iterator[list[str]]:
    """What the document says can be typed, as words, the program's name first."""
    blocks = [body for language, body in FENCED.findall(document.read_text()) if language == "console"]
    lines = [line for body in blocks for line in body.splitlines()] + _spans(document)
    for line in lines:
        for part in re.sub(r"\s#\s.*", "", line).split(";"):
            words = shlex.split(part) if part.count("'") % 2 == 0 else part.split()
            while words and re.match(r"^[A-Z_]+=", words[0]):
                del words[0]
            words = [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else []
            is_ours = words and words[0] in ("modelyard", "make") and "..." not in words
            if is_ours or words[:3] == ["prefect", "deployment", "run"]:
                yield words


@cache
def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):.*##", (PROJECT / "Makefile").read_text(), re.MULTILINE))


@cache
def _deployments() -> set[str]:
    described = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
    return {f"{each['entrypoint'].rpartition('.')[2]}/{each['name']}" for each in described}


def _flows() -> set[str]:
    return {name.partition("/")[0] for name in _deployments()}


def _variables() -> set[str]:
    return {f"MODELYARD_{field.upper()}" for field in Settings.model_fields}


def _anchors(path: Path) -> set[str]:
    """Headings as the usual renderers link them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _is_preset_key(key: str) -> bool:
    config: Any = LifecycleConfig
    for name in key.split("."):
        if not (isinstance(config, type) and issubclass(config, BaseModel)):
            return True  # below a union: its parts are the presets' own test
        if name not in config.model_fields:
            return False
        config = config.model_fields[name].annotation
    return True
