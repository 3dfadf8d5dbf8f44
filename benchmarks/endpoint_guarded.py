"""What keys and TLS cost: the same endpoint, from the same cache, without either, with keys, with TLS, and with both."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from benchmarks import endpoint_start, load
from benchmarks.figures import Contestant, Figure, Findings, Sample, compare, take_turns
from benchmarks.servers import Server
from commands.environment import PROJECT
from modelyard.settings import Settings

PLAIN, KEYS, TLS, BOTH = "endpoint", "endpoint, keys", "endpoint, TLS", "endpoint, keys and TLS"
CLIENT = "bench"
NOTE = (
    "Keys and TLS: one key of the file, without a rate; TLS 1.3 as the client's library takes it, an EC certificate (P-256),"
    " connections kept open, so that no handshake is counted."
)


def measure(
    settings: Settings, given: Mapping[str, Server], connections: int, seconds: float, rounds: int, scratch: Path
) -> Findings:
    """Requests a second of each.

    Args:
        given: what is asked of the stack's endpoint, by the form of the request.
    """
    home = endpoint_start.copy_home(settings, scratch)
    key = _add_key(home)
    guards = {PLAIN: {}, KEYS: {"ENDPOINT_KEYS": "required"}, TLS: _certificate(scratch)}
    guards[BOTH] = guards[KEYS] | guards[TLS]
    access = endpoint_start.access(settings)
    figures: list[Figure] = []
    with ExitStack() as running:
        urls = {
            name: running.enter_context(endpoint_start.beside(home, access | guard))[0]
            for name, guard in guards.items()
        }
        for form, server in given.items():
            servers = {name: _there(server, url, key if name in (KEYS, BOTH) else None) for name, url in urls.items()}
            for one in servers.values():
                endpoint_start.await_answer(one.url, one)
            samples = take_turns(
                {name: _fired(one, connections, seconds, scratch) for name, one in servers.items()}, rounds
            )
            for measured, unit, better in (("rate", "1/s", "more"), ("p99", "ms", "less")):
                what = "requests" if measured == "rate" else "p99"
                figures += [
                    compare(
                        samples, measured, subject=name, against=PLAIN, unit=unit, better=better,
                        name=f"{connections} connections, {form}: {what}",
                    )
                    for name in (KEYS, TLS, BOTH)
                ]  # fmt: skip
    return Findings(figures=figures, notes=[NOTE])


def _fired(server: Server, connections: int, seconds: float, scratch: Path) -> Contestant:
    def sample() -> Sample:
        found = load.fire(server.url, server.body, connections=connections, seconds=seconds, scratch=scratch,
                          headers=server.headers)  # fmt: skip
        return {"rate": found.per_second, "p99": found.p99_ms}

    return sample


def _there(server: Server, url: str, key: str | None) -> Server:
    address, there = httpx.URL(server.url), httpx.URL(url)
    headers = dict(server.headers) | ({"Authorization": f"Bearer {key}"} if key else {})
    return Server(url=str(address.copy_with(scheme=there.scheme, port=there.port)), body=server.body, headers=headers)


def _add_key(home: Path) -> str:
    """A key for predictions, made as a user makes it."""
    command = [sys.executable, "-m", "modelyard.serve.keys", "add", CLIENT]
    environment = {"PYTHONPATH": str(PROJECT), "MODELYARD_HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def _certificate(folder: Path) -> dict[str, str]:
    """Settings that name a certificate for this machine, which signs itself."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "endpoint.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(certificate.public_bytes(Encoding.PEM) + secret)
    return {"ENDPOINT_CERTIFICATE": str(file)}
