"""Keys: who may ask, what for and how often; held as digests, changed without a restart."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from modelyard.audit import Entry, entries
from modelyard.errors import ConfigError, NotFound
from modelyard.revisions import ServedVersion
from modelyard.serve import keys
from modelyard.serve.answers import HttpError
from modelyard.serve.keys import Guard, add_key, keys_file, read_keys, revoke_key
from modelyard.serve.metering import Meter
from modelyard.settings import Settings, load_settings
from modelyard.storage import Store
from tests.serve.inprocess import endpoint
from tests.serve.load import BODY
from tests.serve.packages import ROWS, publish_version
from tests.serve.processes import Endpoint, until

INFER = "/v2/models/digits/infer"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + key.encode())]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "endpoint" / "keys.json"


@pytest.fixture(scope="module")
def version(store: Store) -> ServedVersion:
    return publish_version(store, "1")


async def test_keys_open_what_they_are_for(settings: Settings, store: Store, version: ServedVersion, tmp_path: Path):
    """Over real connections: no key 401, a predict key predicts in every protocol, an admin key administrates, neither
    does the other's; health and metrics need none; a key comes and goes while the endpoint runs."""
    async with endpoint(settings, store, version, tmp_path, keys="required") as inside, inside.listening() as port:
        file = keys_file(inside.settings)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

            def ask(key: str | None, route: str = INFER, document: object = BODY) -> Awaitable[httpx.Response]:
                return client.post(route, json=document, headers={"Authorization": f"Bearer {key}"} if key else {})

            async def becomes(status: int, send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
                async with asyncio.timeout(15):
                    while (response := await send()).status_code != status:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                return response

            refused = await ask(None)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert "Authorization: Bearer" in refused.json()["error"]
            for open_to_all in ("/livez", "/metrics", "/v2/health/live", "/ping"):
                assert (await client.get(open_to_all)).status_code in (200, 503), open_to_all
            predict = add_key(file, "alice", ["predict"], None)
            admin = add_key(file, "root", ["admin"], None)
            await becomes(200, lambda: ask(predict))
            assert (await ask(predict, "/invocations", {"inputs": ROWS.tolist()})).status_code == 200
            assert (await ask(predict, f"{INFER}?long=way")).status_code == 200
            for route in (INFER, "/invocations", "/v2/models/digits/versions/1/infer", "/v2/models/d%69gits/infer"):
                assert (await ask(None, route)).status_code == 401, route
                assert (await ask(predict + "x", route)).status_code == 401, route
                assert (await ask(admin, route)).status_code == 403, route
            assert (await client.get("/v2/models/digits")).status_code == 401
            assert (await ask(predict, "/admin/notify")).status_code == 403
            assert (await ask(None, "/admin/notify")).status_code == 401
            assert (await ask(admin, "/admin/notify")).status_code == 202
            revoke_key(file, "alice")
            await becomes(401, lambda: ask(predict))


def test_only_a_digest_is_kept(path: Path):
    """The file has neither the key nor a part of it, and is for its owner's eyes only."""
    secret = add_key(path, "alice", ["predict"], 5)
    text = path.read_text()
    assert secret not in text
    assert secret.removeprefix(keys.PREFIX)[:8] not in text
    assert path.stat().st_mode & 0o777 == 0o600
    [key] = read_keys(path)
    assert (key.name, key.scopes, key.per_second) == ("alice", ["predict"], 5)


def test_a_rate_is_kept_per_key(path: Path):
    """A second's worth at once, then 429 with the seconds to wait; another key is not touched; time gives it back."""
    alice, bob = add_key(path, "alice", ["predict"], 2), add_key(path, "bob", ["predict"], None)
    clock = Clock()
    guard = Guard(path, admin_token=None, is_required=True, clock=clock)
    for _ in range(2):
        guard.admit(bearer(alice), "predict")
    with pytest.raises(HttpError, match="may ask 2 times a second") as refused:
        guard.admit(bearer(alice), "predict")
    assert (refused.value.status, refused.value.headers) == (429, [(b"retry-after", b"1")])
    for _ in range(100):
        guard.admit(bearer(bob), "predict")
    clock.now = 0.5
    guard.admit(bearer(alice), "predict")
    with pytest.raises(HttpError):
        guard.admit(bearer(alice), "predict")


def test_a_damaged_file_keeps_the_known_keys(path: Path):
    """A file that cannot be read locks nobody out who was known, and lets nobody in."""
    alice = add_key(path, "alice", ["predict"], None)
    clock = Clock()
    guard = Guard(path, admin_token="token", is_required=True, clock=clock)
    guard.admit(bearer(alice), "predict")
    path.write_text("{")
    clock.now = 10
    guard.admit(bearer(alice), "predict")
    guard.admit(bearer("token"), "predict")
    path.unlink()
    clock.now = 20
    with pytest.raises(HttpError):
        guard.admit(bearer(alice), "predict")


@pytest.mark.parametrize(
    "given", [[], [(b"authorization", b"Basic YTpi")], bearer(""), bearer("token "), bearer("\xff")]
)
def test_what_is_no_key_is_401(path: Path, given: list[tuple[bytes, bytes]]):
    """Another scheme, nothing, or nearly the token."""
    guard = Guard(path, admin_token="token", is_required=False)
    guard.admit(bearer("token"), "admin")
    with pytest.raises(HttpError) as refused:
        guard.admit(given, "admin")
    assert refused.value.status == 401


def test_wrong_names_rates_and_files_are_named(path: Path):
    """What cannot be kept is refused before anything is written."""
    with pytest.raises(NotFound, match="there are: none"):
        revoke_key(path, "alice")
    with pytest.raises(ConfigError, match="name"):
        add_key(path, "Alice Smith", ["predict"], None)
    with pytest.raises(ConfigError, match="per_second"):
        add_key(path, "alice", ["predict"], -1)
    add_key(path, "alice", ["predict"], None)
    with pytest.raises(ConfigError, match="already"):
        add_key(path, "alice", ["admin"], None)
    path.write_text('[{"name": "alice"}]')
    with pytest.raises(ConfigError, match="sha256"):
        read_keys(path)


def test_the_command_makes_a_key_that_opens(tmp_path: Path):
    """`python -m modelyard.serve.keys add` prints the key alone; list and revoke know it by name."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "modelyard.serve.keys", *arguments]
        environment = {"MODELYARD_HOME": str(tmp_path), "PYTHONPATH": str(Path(keys.__file__).parents[2])}
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )

    secret = run(
        "add", "alice", "--scope", "predict", "--per-second", "50", "--per-day", "9", "--reason", "a test"
    ).stdout.strip()
    file = keys_file(load_settings(home=tmp_path))
    Guard(file, admin_token=None, is_required=True).admit(bearer(secret), "predict")
    assert run("list").stdout.split() == ["alice", "predict", "50/s", "9/day"]
    assert run("revoke", "bob").stderr.startswith("NotFound: there is no key 'bob'; there are: alice")
    assert run("revoke", "alice").returncode == 0
    assert read_keys(file) == []
    notes = [
        Entry.model_validate_json(path.read_bytes()) for path in sorted((tmp_path / "endpoint" / "audit").iterdir())
    ]
    assert [(note.what, note.subject, note.why) for note in notes] == [
        ("key added", "alice (predict)", "a test"),
        ("key revoked", "bob", ""),
        ("key revoked", "alice", ""),
    ]


def test_admin_calls_are_in_the_audit_log(store: Store, digits_endpoint: Endpoint):
    """Who told the endpoint to look is in the bucket soon after, by the name of the key."""
    digits_endpoint.notify()

    def told() -> Entry | None:
        return next((entry for entry in entries(store) if entry.subject == digits_endpoint.name), None)

    entry = until(told, "the entry")
    assert (entry.who, entry.what) == ("admin-token", "endpoint notified")


def test_a_quota_ends_with_the_day(path: Path):
    """So many requests a day and key, then 429 with the seconds until midnight UTC; what was counted outlives the
    process, and tomorrow begins with nothing."""
    secret = add_key(path, "alice", ["predict"], None, 3)
    clock = Clock()
    clock.now = 86_400 * 20_000 + 86_000.0

    def guard() -> Guard:
        return Guard(path, admin_token=None, is_required=True, meter=Meter(path.parent / "usage", clock))

    first = guard()
    for _ in range(2):
        assert first.admit(bearer(secret), "predict") == "alice"
    first.meter.save()
    second = guard()
    second.admit(bearer(secret), "predict")
    with pytest.raises(HttpError) as refused:
        second.admit(bearer(secret), "predict")
    assert refused.value.status == 429
    assert (b"retry-after", b"401") in refused.value.headers
    second.meter.save()
    first.meter.save()  # a router that leaves late takes nothing back
    assert guard().meter.today() == {"alice": 3}
    clock.now += 401
    second.admit(bearer(secret), "predict")
    assert second.meter.today() == {"alice": 1}
    (path.parent / "usage" / "2024-10-05.json").write_text("[1, 2")
    assert guard().meter.today() == {}


@pytest.mark.parametrize(
    ("host", "setting", "needed"),
    [
        ("127.0.0.1", "auto", False),
        ("::1", "auto", False),
        ("localhost", "auto", False),
        ("0.0.0.0", "auto", True),  # noqa: S104
        ("192.168.1.5", "auto", True),
        ("models.example", "auto", True),
        ("0.0.0.0", "off", False),  # noqa: S104
        ("127.0.0.1", "required", True),
    ],
)
def test_keys_are_needed_outside_loopback(settings: Settings, host: str, setting: str, needed: bool):
    """Whoever can be reached from elsewhere asks for keys, unless told not to."""
    assert settings.model_copy(update={"host": host, "endpoint_keys": setting}).endpoint_needs_keys is needed
