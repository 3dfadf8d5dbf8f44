"""TLS of the endpoint's own connections: a certificate and its key, as files that may be replaced while it runs."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from modelyard.errors import ConfigError
from modelyard.settings import Settings

logger = logging.getLogger(__name__)

CERTIFICATE, KEY = "MODELYARD_ENDPOINT_CERTIFICATE", "MODELYARD_ENDPOINT_CERTIFICATE_KEY"


class Tls:
    """What new connections are shaken hands with. Connections that are open keep the certificate they began with.

    Raises:
        ConfigError: the files cannot be used.
    """

    def __init__(self, certificate: Path, key: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._seen = self._looks()
        self.context = new_context()
        _load(self.context, certificate, key)

    def refresh(self) -> bool:
        """Take the files over if they changed; of files that cannot be used, say so once and keep the ones before."""
        if (looks := self._looks()) == self._seen:
            return False
        self._seen = looks
        try:
            # A context that took the certificate and then refuses the key would have half of each.
            _load(new_context(), self._certificate, self._key)
            _load(self.context, self._certificate, self._key)
        except ConfigError as failure:
            logger.warning("the certificate in use stays: %s", failure)
            return False
        logger.info("new connections get the certificate that %s holds now", self._certificate)
        return True

    def _looks(self) -> list[tuple[int, int, int] | None]:
        return [_look(path) for path in (self._certificate, self._key) if path]


def tls_of(settings: Settings) -> Tls | None:
    """As the settings say; None: plain HTTP.

    Raises:
        ConfigError: a file that cannot be used, or a key without a certificate.
    """
    if settings.endpoint_certificate is None:
        if settings.endpoint_certificate_key:
            raise ConfigError(CERTIFICATE, f"{KEY} names a key, and nothing names its certificate")
        return None
    return Tls(settings.endpoint_certificate, settings.endpoint_certificate_key)


def new_context() -> ssl.SSLContext:
    """Of a server that speaks HTTP/1.1 over TLS 1.2 or later."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    def no_password() -> str:
        raise ConfigError(KEY, f"{key or certificate} is encrypted: the endpoint starts without anybody to ask")

    for path, field in ((certificate, CERTIFICATE), (key, KEY)):
        if path and not path.is_file():
            raise ConfigError(field, f"{path} is not a file")
    try:
        context.load_cert_chain(certificate, key, no_password)
    except (ssl.SSLError, OSError) as failure:
        where = f"{certificate}{f' and {key}' if key else ''}"
        raise ConfigError(
            CERTIFICATE, f"{where}: not a certificate with its own private key as PEM ({failure})"
        ) from failure


def _look(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
