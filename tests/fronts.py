"""A front for a server of the tests: TLS before a plain one, a note of the headers that clients send, refusals, cuts."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import math
import re
import socket
import ssl
import threading
from collections.abc import Callable, Generator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CHUNK_BYTES = 65536
DENIED = b"<Error><Code>AccessDenied</Code><Message>the test says no</Message></Error>"
REFUSAL = b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(DENIED), DENIED)
SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nconnection: close\r\ncontent-length: 38\r\n\r\n<Error><Code>SlowDown</Code></Error>\r\n"
)


class Front:
    """Passes connections on to a port of this machine; `heard` has what clients sent, as it came.

    Requests that begin with what `refuses` matches are answered with `refusal`: 403, as a store does that grants no right
    to write, unless another answer is put there; so many of them as `refusals` says, if it says a number. The first
    connection over which more than `cut_after` bytes are answered ends there. While it `is_away`, nobody gets
    an answer: what is said on a connection ends it.
    """

    def __init__(self, target_port: int, certificate: Path | None = None) -> None:
        self.heard = bytearray()
        self.refuses: re.Pattern[bytes] | None = None
        self.refusal = REFUSAL
        self.refusals: float = math.inf
        self.cut_after: float = math.inf
        self.is_away = False
        self._target_port = target_port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
        if self._context and certificate:
            self._context.load_cert_chain(certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as open_sockets:
            client = open_sockets.enter_context(
                self._context.wrap_socket(connection, server_side=True) if self._context else connection
            )
            server = open_sockets.enter_context(socket.create_connection(("127.0.0.1", self._target_port)))
            answers = threading.Thread(target=_pass_on, args=[server, client, self._answer_of()], daemon=True)
            answers.start()
            _pass_on(client, server, self._hear)
            answers.join()

    def _hear(self, chunk: bytes, client: socket.socket) -> bool:
        """Whether what a client sent is passed on."""
        if self.is_away:
            return False
        self.heard += chunk
        if self.refuses is None or not self.refuses.match(chunk) or not self.refusals:
            return True
        self.refusals -= 1
        client.sendall(self.refusal)
        return False

    def _answer_of(self) -> Callable[[bytes, socket.socket], bool]:
        """Whether what the server of one connection answered is passed on."""
        answered = 0

        def passes(chunk: bytes, _server: socket.socket) -> bool:
            nonlocal answered
            answered += len(chunk)
            if answered <= self.cut_after:
                return True
            self.cut_after = math.inf
            return False

        return passes


def _pass_on(
    source: socket.socket, sink: socket.socket, may_pass: Callable[[bytes, socket.socket], bool] | None = None
) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(CHUNK_BYTES):
            if may_pass and not may_pass(chunk, source):
                break
            sink.sendall(chunk)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def front(target_port: int, certificate: Path | None = None) -> Generator[Front]:
    """A front on a port of its own, for as long as the block lasts."""
    opened = Front(target_port, certificate)
    try:
        yield opened
    finally:
        opened.close()


def private_authority(folder: Path) -> tuple[Path, Path]:
    """(certificate of an authority nobody knows, certificate and key that it gave to 127.0.0.1), as PEM files."""
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("Authority of the tests", authority_key, "Authority of the tests", authority_key, ca=True)
    server = _certificate("127.0.0.1", server_key, "Authority of the tests", authority_key, ca=False)
    authority_file, server_file = folder / "authority.pem", folder / "server.pem"
    authority_file.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    key = server_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    server_file.write_bytes(server.public_bytes(serialization.Encoding.PEM) + key)
    return authority_file, server_file


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not ca:
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
