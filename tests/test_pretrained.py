"""Networks that others trained: which folder is which artifact, and what is asked of a hub, if one is named."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from commands.environment import PROJECT
from modelyard.catalog import Catalog, Origin
from modelyard.errors import ConfigError, DataError, HubUnavailable, MissingExtra, NotFound
from modelyard.hub import download
from modelyard.models.weights import Held, written
from modelyard.pretrained import take_in
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.serve.processes import free_port
from tests.textbench import tokenizer_folder

FIELD = "train.model.source"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tokenizer_folder(tmp_path_factory.mktemp("pretrained") / "tiny")
    save_file({"weight": np.ones(3)}, folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    (folder / "modeling.py").write_text("raise SystemExit")
    return folder


def test_the_same_bytes_are_the_same_artifact(store: Store, source: Path):
    """In the bucket or on the disk; settings, tokenizer and safetensors, and neither pickles nor code."""
    catalog = Catalog(store)
    for path in source.iterdir():
        store.put(f"{store.root}/tests/pretrained/{path.name}", path.read_bytes())
    here = take_in(catalog, f"file://{source}", FIELD, Origin())
    there = take_in(catalog, f"{store.root}/tests/pretrained/", FIELD, Origin())
    assert (here.ref, there.reused) == (there.ref, True)
    kept = set(here.manifest.content.files)
    assert kept == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_what_is_no_folder_is_refused(store: Store, tmp_path: Path):
    """By the key that names it, with what to write instead."""
    catalog = Catalog(store)
    for address, kind, words in [
        ("some/where", ConfigError, r"train\.model\.source: 'some/where' is no folder"),
        ("file://here", ConfigError, "the path has to be absolute"),
        (f"file://{tmp_path}/nothing", NotFound, "there is nothing in"),
        ("hub:a/b@main", ConfigError, "downloads are off; name a hub in MODELYARD_HUB_URL"),
    ]:
        with pytest.raises(kind, match=words):
            take_in(catalog, address, FIELD, Origin())
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"config\.json is no JSON"):
        take_in(catalog, f"file://{tmp_path}", FIELD, Origin())


def test_weights_that_are_not_whole_are_refused(store: Store, source: Path, tmp_path: Path):
    """Before a rank is started, with the folder and the file: in one, in several, and what the index says of them."""
    catalog = Catalog(store)
    folder = tmp_path / "folder"
    shutil.copytree(source, folder)
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-7])
    where = rf"train\.model\.source: file://{folder}"
    with pytest.raises(DataError, match=rf"{where}/model\.safetensors cannot be read: it is truncated"):
        take_in(catalog, f"file://{folder}", FIELD, Origin())
    (folder / "model.safetensors").unlink()
    weights = Held({name: torch.ones(3) for name in "ab"})
    files = list(written(weights, folder, 12))
    kept = set(take_in(catalog, f"file://{folder}", FIELD, Origin()).manifest.content.files)
    assert set(files) < kept
    (folder / files[1]).unlink()
    with pytest.raises(DataError, match=rf"{where}/{files[1]} is missing"):
        take_in(catalog, f"file://{folder}", FIELD, Origin())


@contextmanager
def hub_of(folder: Path, asked: list[str]) -> Generator[str]:
    """The routes of a hub that its client asks, over the files of a folder."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            asked.append(self.path)
            path = self.path.partition("?")[0]
            known = path.startswith(("/api/models/owner/name/", "/owner/name/resolve/"))
            file = folder / path.rpartition("/")[2]
            if known and "/resolve/" in path and file.is_file():
                body, kind = file.read_bytes(), "application/octet-stream"
            elif known and "/tree/" in path:
                listed = [
                    {"type": "file", "path": one.name, "size": one.stat().st_size, "oid": "0" * 40}
                    for one in folder.iterdir()
                ]
                body, kind = json.dumps(listed).encode(), "application/json"
            elif known and "/revision/" in path:
                siblings = [{"rfilename": one.name} for one in folder.iterdir()]
                body, kind = (
                    json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode(),
                    "application/json",
                )
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{file.name}-{len(body)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name)
            """Nothing into the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.soak
def test_a_hub_is_asked_where_one_is_named(store: Store, settings: Settings, source: Path):
    """Through the hub's own client: the same artifact as of the folder; no pickle and no code is fetched. An unknown name
    and a hub that is not there are said as what they are."""
    asked: list[str] = []
    with hub_of(source, asked) as url:
        catalog = Catalog(Store(settings.model_copy(update={"hub_url": url})))
        product = take_in(catalog, f"hub:owner/name@{COMMIT}", FIELD, Origin())
        assert product.ref == take_in(Catalog(store), f"file://{source}", FIELD, Origin()).ref
        assert not any(path.endswith((".bin", ".py")) for path in asked)
        with pytest.raises(NotFound, match="has no owner/other at main"):
            take_in(catalog, "hub:owner/other@main", FIELD, Origin())
        with pytest.raises(ConfigError, match="is no address on a hub"):
            take_in(catalog, "hub:name", FIELD, Origin())
    gone = Catalog(Store(settings.model_copy(update={"hub_url": f"http://127.0.0.1:{free_port()}"})))
    with pytest.raises(HubUnavailable, match="does not answer"):
        take_in(gone, "hub:owner/name@main", FIELD, Origin())


@pytest.mark.parametrize(
    ("breaks", "kind", "says"),
    [
        ("raise RuntimeError('the client is broken')", HubUnavailable, "status 1: .*the client is broken"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", HubUnavailable, "status -9"),
        ("raise ImportError('no such module')", MissingExtra, r"modelyard\[transformers\]"),
    ],
)
def test_a_download_that_breaks_is_not_taken_for_a_missing_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str, kind: type[Exception], says: str
):
    """Only a client that cannot be imported is to be installed; anything else is said as it ended."""
    (tmp_path / "huggingface_hub.py").write_text(breaks)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{PROJECT}")
    with pytest.raises(kind, match=says):
        download("hub:owner/name@main", FIELD, "http://127.0.0.1:1", tmp_path / "files", ["*.json"])
