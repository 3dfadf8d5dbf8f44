"""Connections over TLS, with certificates made here. The server runs in this process, its worker and store are real."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from modelyard.errors import ConfigError
from modelyard.serve.tls import Tls, tls_of
from modelyard.settings import Settings
from modelyard.storage import Store
from tests.serve.inprocess import endpoint
from tests.serve.load import BODY
from tests.serve.packages import publish_version
from tests.serve.processes import PROJECT, free_port

INFER = "/v2/models/digits/infer"


def make_certificate(folder: Path, serial: int = 1, password: bytes | None = None) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), serial)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    files = folder / "tls.crt", folder / "tls.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    how = BestAvailableEncryption(password) if password else NoEncryption()
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    return files


async def test_requests_over_tls(settings: Settings, store: Store, tmp_path: Path):
    """Our clients' trust opens it, many requests use one connection, another certificate is taken without a restart and
    open connections go on; a client without the authority, plain HTTP and an end of the server are refused or closed."""
    files = make_certificate(tmp_path / "tls")
    tls = Tls(*files)
    own = settings.model_copy(update={"endpoint_ca_bundle": files[0]})
    async with (
        endpoint(settings, store, publish_version(store, "1"), tmp_path) as inside,
        inside.listening(tls.context) as port,
        httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=own.endpoint_trust) as client,
    ):
        first = [await client.post(INFER, json=BODY) for _ in range(3)]
        assert not tls.refresh()
        make_certificate(tmp_path / "tls", serial=2)
        assert tls.refresh()
        after = await client.post(INFER, json=BODY)  # its connection began with the first certificate
        assert await asyncio.to_thread(serial_number, port) == 2
        files[1].write_text("no key")
        assert not tls.refresh()
        assert await asyncio.to_thread(serial_number, port) == 2
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            await asyncio.to_thread(httpx.post, f"https://127.0.0.1:{port}{INFER}", json=BODY, trust_env=False)
        with pytest.raises(httpx.HTTPError):
            await asyncio.to_thread(httpx.post, f"http://127.0.0.1:{port}{INFER}", json=BODY, trust_env=False)
        inside.app.is_draining = True
        last = await client.post(INFER, json=BODY)
    assert {answer.status_code for answer in [*first, after, last]} == {200}
    assert last.headers["connection"] == "close"
    assert first[0].headers["modelyard-model-version"] == "1"


async def test_a_handshake_that_does_not_come_is_ended(settings: Settings, store: Store, tmp_path: Path):
    """Who connects and says nothing, or something else, is let go; the neighbour is answered."""
    files = make_certificate(tmp_path / "tls")
    own = settings.model_copy(update={"endpoint_ca_bundle": files[0]})
    async with (
        endpoint(settings, store, publish_version(store, "1"), tmp_path, head_seconds=0.3) as inside,
        inside.listening(Tls(*files).context) as port,
    ):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        silent[0][1].write(b"\x16\x03\x01\xff\xff")
        async with httpx.AsyncClient(verify=own.endpoint_trust) as client:
            assert (await client.post(f"https://127.0.0.1:{port}{INFER}", json=BODY)).status_code == 200
        async with asyncio.timeout(5):
            for reader, writer in silent:
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await reader.readexactly(1)
                writer.close()


def test_files_that_cannot_be_used_are_named(settings: Settings, tmp_path: Path):
    """A missing file, a key of another certificate, an encrypted one, no PEM at all; a key alone; an authority that is none."""
    certificate, key = make_certificate(tmp_path / "tls")
    _, foreign = make_certificate(tmp_path / "other")
    _, encrypted = make_certificate(tmp_path / "encrypted", password=b"secret")
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    assert Tls(both, None)
    cases = [
        (tmp_path / "nowhere", key, "is not a file"),
        (certificate, tmp_path / "nowhere", r"CERTIFICATE_KEY: .*is not a file"),
        (certificate, foreign, "its own private key"),
        (certificate, encrypted, "is encrypted"),
        (key, key, "not a certificate"),
        (certificate, None, "its own private key"),
    ]
    for one, other, words in cases:
        with pytest.raises(ConfigError, match=words):
            Tls(one, other)
    with pytest.raises(ConfigError, match="nothing names its certificate"):
        tls_of(settings.model_copy(update={"endpoint_certificate_key": key}))
    with pytest.raises(ConfigError, match=r"MODELYARD_ENDPOINT_CA_BUNDLE: .*no certificate"):
        assert settings.model_copy(update={"endpoint_ca_bundle": key}).endpoint_trust


def test_an_endpoint_with_a_wrong_certificate_does_not_start(tmp_path: Path):
    """It says which file, and ends; with a right one its address is https."""
    _, key = make_certificate(tmp_path / "tls")
    own = {
        "PYTHONPATH": str(PROJECT),
        "MODELYARD_HOME": str(tmp_path),
        "MODELYARD_ENDPOINT_PORT": str(free_port()),
        "MODELYARD_ENDPOINT_CERTIFICATE": str(key),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "modelyard.serve"],
        env={name: value for name, value in os.environ.items() if not name.startswith("MODELYARD_")} | own,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode
    assert f"MODELYARD_ENDPOINT_CERTIFICATE: {key}: not a certificate" in ended.stderr
    assert "Traceback" not in ended.stderr


def serial_number(port: int) -> int:
    """Of the certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        shown = connection.getpeercert(binary_form=True)
    assert shown
    return x509.load_der_x509_certificate(shown).serial_number
