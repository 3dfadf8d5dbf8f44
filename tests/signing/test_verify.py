"""Signatures: what convinces, and what is refused with which words. Keys and bundles are real."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from model_signing import verifying

from modelyard.errors import ConfigError, NotFound, SignatureRefused
from modelyard.signing.keys import create_key, distrust, private_key, trusted_keys
from modelyard.signing.sign import _bundle
from modelyard.signing.verify import verify, verify_folder

MANIFEST = b'{"content": {"files": {}}}'


@dataclass
class Signed:
    """A manifest with one signature, and the folder of the key that made it."""

    folder: Path
    trusted: Path
    private: Path
    key: str

    @property
    def bundle(self) -> Path:
        return self.folder / "signatures" / f"{self.key}.json"

    def sign(self, private: Path, key: str) -> None:
        path = self.folder / "signatures" / f"{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_bundle((self.folder / "manifest.json").read_bytes(), private))


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    private, trusted = tmp_path / "secrets" / "key.pem", tmp_path / "trusted"
    made = Signed(tmp_path / "artifact", trusted, private, create_key(private, trusted))
    made.folder.mkdir()
    (made.folder / "manifest.json").write_bytes(MANIFEST)
    made.sign(private, made.key)
    return made


def test_a_signature_convinces_us_and_model_signing(signed: Signed):
    """What rollout writes is OpenSSF's own format: their verifier takes it with the public key, and notices an altered
    manifest, as ours does."""
    assert verify_folder(signed.folder, signed.trusted) == signed.key
    manifest = signed.folder / "manifest.json"
    theirs = verifying.Config().use_elliptic_key_verifier(public_key=signed.trusted / f"{signed.key}.pem")
    theirs.verify(manifest, signed.bundle)
    manifest.write_bytes(MANIFEST + b" ")
    with pytest.raises(ValueError, match="mismatch"):
        theirs.verify(manifest, signed.bundle)
    assert signed.private.stat().st_mode & 0o777 == 0o600


def edit(change: Callable[[dict], object]) -> Callable[[Signed], object]:
    """An alteration of the bundle's JSON."""

    def alter(signed: Signed) -> None:
        document = json.loads(signed.bundle.read_bytes())
        change(document)
        signed.bundle.write_text(json.dumps(document))

    return alter


def other_statement(document: dict) -> None:
    """Vouch, with the old signature, for another file."""
    payload = base64.b64decode(document["dsseEnvelope"]["payload"])
    document["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(b"manifest", b"Manifest")).decode()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda signed: (signed.folder / "manifest.json").write_bytes(MANIFEST + b" "), "it was altered since"),
        (lambda signed: signed.bundle.unlink(), "it is unsigned"),
        (lambda signed: signed.bundle.rename(signed.bundle.with_name("ab.json")), "signed by ab, which is not trusted"),
        (lambda signed: signed.bundle.write_bytes(b"[" * 60_000), "is not a bundle"),
        (lambda signed: signed.bundle.write_bytes(b" " * 70_000), "is longer than"),
        (lambda signed: signed.bundle.write_bytes(b"[]"), "is not a bundle"),
        (edit(lambda document: document["dsseEnvelope"]["signatures"].clear()), "is not a bundle with one signature"),
        (edit(lambda document: document["dsseEnvelope"].update(payloadType="text/plain")), "is not about a statement"),
        (edit(lambda document: document["dsseEnvelope"]["signatures"][0].update(sig="AAAA")), "was not made by that"),
        (edit(other_statement), "was not made by that key, or was altered"),
        (lambda signed: distrust(signed.key[:8], signed.trusted), "no public key is trusted"),
    ],
)
def test_what_is_not_signed_as_it_is_is_refused(signed: Signed, damage: Callable[[Signed], object], words: str):
    """Unsigned, altered, signed for something else or by a stranger: each is refused in its own words."""
    damage(signed)
    with pytest.raises(SignatureRefused, match=words):
        verify_folder(signed.folder, signed.trusted)


def test_a_strangers_signature_under_a_trusted_name_is_refused(signed: Signed, tmp_path: Path):
    """The name of a signature's file convinces nobody."""
    create_key(tmp_path / "stranger.pem", tmp_path / "elsewhere")
    signed.sign(tmp_path / "stranger.pem", signed.key)
    with pytest.raises(SignatureRefused, match="was not made by that key"):
        verify_folder(signed.folder, signed.trusted)


def test_keys_rotate(signed: Signed):
    """A new key signs while the old one is still trusted; when that one goes, what it alone signed goes with it."""
    new = create_key(signed.private, signed.trusted)
    assert set(trusted_keys(signed.trusted)) == {signed.key, new}
    assert verify_folder(signed.folder, signed.trusted) == signed.key
    distrust(signed.key[:12], signed.trusted)
    with pytest.raises(SignatureRefused, match=f"signed by {signed.key[:12]}, which is not trusted"):
        verify_folder(signed.folder, signed.trusted)
    signed.sign(signed.private, new)
    assert verify_folder(signed.folder, signed.trusted) == new
    with pytest.raises(NotFound, match="0 trusted keys begin"):
        distrust(signed.key, signed.trusted)


def test_one_good_signature_is_enough(signed: Signed):
    """A damaged signature by one trusted key does not take away what another one vouches for."""
    new = create_key(signed.private, signed.trusted)
    signed.sign(signed.private, new)
    signed.bundle.write_bytes(b"{}")
    assert verify_folder(signed.folder, signed.trusted) == new


def test_a_key_that_others_can_read_does_not_sign(signed: Signed):
    """As ssh does: a private key of mode 0644 is no secret, an absent one or another kind none at all."""
    signed.private.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        private_key(signed.private)
    with pytest.raises(ConfigError, match="there is no key to sign with"):
        private_key(signed.private.with_name("absent"))
    foreign = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    signed.private.write_bytes(foreign)
    signed.private.chmod(0o600)
    with pytest.raises(ConfigError, match="is not a key on one of the curves"):
        private_key(signed.private)
    (signed.trusted / "junk.pem").write_text("junk")
    with pytest.raises(ConfigError, match=r"junk\.pem is no public key"):
        trusted_keys(signed.trusted)


def test_nothing_is_trusted_by_default():
    """Without a public key nothing is accepted, whatever it is signed with."""
    with pytest.raises(SignatureRefused, match="no public key is trusted"):
        verify(MANIFEST, {}, {})
