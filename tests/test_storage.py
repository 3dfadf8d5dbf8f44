"""The object store's promises, held against the real embedded store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from botocore.exceptions import SSLError
from pydantic import SecretStr

from modelyard.errors import NotFound, ObjectChanged, StoreRefused, StoreUnavailable
from modelyard.settings import Settings
from modelyard.storage import Store, split_uri
from modelyard.storage.clients import connect_control
from modelyard.storage.failures import Translated, control_translated
from modelyard.storage.transfer import PART_BYTES, _fetch_rest, _first_part
from tests.conftest import free_ports
from tests.fronts import front, private_authority


@pytest.fixture
def folder(store: Store) -> str:
    """A fresh folder of the bucket."""
    return f"{store.root}/tests/{uuid4().hex}"


@pytest.mark.parametrize("racers", [16])
def test_one_of_many_racers_creates(store: Store, folder: str, racers: int):
    """Of sixteen that create the same object at once one is told it did, and the object is that one's."""
    bodies = [f"racer {number}".encode() for number in range(racers)]
    with ThreadPoolExecutor(racers) as pool:
        won = list(pool.map(lambda body: store.put_new(f"{folder}/prize", body), bodies))
    assert won.count(True) == 1
    assert store.get(f"{folder}/prize") == bodies[won.index(True)]


@pytest.mark.parametrize("size", [0, 1, 16 * 2**20, 16 * 2**20 + 1, 40 * 2**20 + 7])
def test_a_file_comes_back_as_it_went(store: Store, folder: str, size: int, tmp_path: Path):
    """Upload and download keep every byte, for empty files and around and across the size of a part."""
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(_pattern(size))
    store.upload(there, f"{folder}/file")
    store.download(f"{folder}/file", back)
    assert back.read_bytes() == there.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "there"]


@pytest.mark.parametrize("size", [0, 40 * 2**20])
def test_bytes_come_back_as_they_went(store: Store, folder: str, size: int):
    """The same for bytes in memory, whole and as a stream."""
    body = _pattern(size)
    store.put(f"{folder}/object", body)
    assert store.get(f"{folder}/object") == body
    assert b"".join(store.get_stream(f"{folder}/object")) == body
    assert store.head(f"{folder}/object").size == size


def test_an_object_replaced_while_it_is_read_is_refused(store: Store, folder: str, tmp_path: Path):
    """Ranges of two versions are never put together: the read is said to have failed, and trying again may help."""
    uri = f"{folder}/changing"
    store.put(uri, _pattern(2 * PART_BYTES))
    bucket, key = split_uri(uri)
    client = store._client(bucket)
    _, meta = _first_part(client, key)
    store.put(uri, bytes(2 * PART_BYTES))
    with (
        (tmp_path / "file").open("wb") as file,
        pytest.raises(ObjectChanged, match=f"{uri}: replaced"),
        Translated(uri),
    ):
        _fetch_rest(client, key, meta, file)


def test_a_missing_object_is_not_found(store: Store, folder: str, tmp_path: Path):
    """Every way to read says NotFound with the URI, and a failed download leaves no file."""
    uri = f"{folder}/nothing"
    for read in (store.get, store.head, lambda uri: store.download(uri, tmp_path / "file")):
        with pytest.raises(NotFound, match=uri):
            read(uri)
    assert not store.exists(uri)
    assert list(tmp_path.iterdir()) == []
    store.delete([uri])


def test_a_wrong_secret_is_refused(store: Store, settings: Settings):
    """Neither client tries again: the sentence says that the credentials were refused."""
    stranger = Store(settings.model_copy(update={"s3_secret_key": SecretStr("wrong")}))
    uri = f"{store.root}/x"
    for ask in (
        lambda: stranger.get(uri),
        lambda: stranger.put(uri, b""),
        stranger.probe,
        stranger.control.create_bucket,
    ):
        with pytest.raises(StoreRefused, match="refused the credentials"):
            ask()


def test_a_missing_bucket_is_refused(store: Store):
    """A bucket nobody made is said to be missing, not made."""
    with pytest.raises(StoreRefused, match="bucket"):
        store.put("s3://no-such-bucket-here/x", b"")
    with pytest.raises(StoreRefused, match="the bucket does not exist"):
        store.glob("s3://no-such-bucket-here/x/*.csv")


def test_nobody_at_home_is_transient(settings: Settings):
    """A port where nobody listens may be answered later."""
    nowhere = settings.model_copy(update={"s3_endpoint_url": f"http://127.0.0.1:{free_ports(1)[0]}"})
    absent = Store(nowhere.model_copy(update={"s3_timeout_seconds": 0.5}))
    with pytest.raises(StoreUnavailable):
        absent.get(f"{absent.root}/x")


def test_glob(store: Store, folder: str):
    """`*` stays within a folder; an object is itself; a folder is its objects; results come in order."""
    for name in ("b.parquet", "a.parquet", "a.csv", "deep/c.parquet", "deep/er/d.parquet"):
        store.put(f"{folder}/{name}", b"x")

    def names(pattern: str) -> list[str]:
        return [info.uri.removeprefix(f"{folder}/") for info in store.glob(f"{folder}/{pattern}")]

    assert names("*.parquet") == ["a.parquet", "b.parquet"]
    assert names("*/*.parquet") == ["deep/c.parquet"]
    assert names("[ab].parquet") == ["a.parquet", "b.parquet"]
    assert names("a.csv") == ["a.csv"]
    assert names("deep") == ["deep/c.parquet", "deep/er/d.parquet"]
    assert names("nothing/*.csv") == []


def test_last(store: Store, folder: str):
    """The last object of a folder in key order, also when looking only behind a known one."""
    assert store.last(folder) is None
    for number in (1, 12, 3):
        store.put(f"{folder}/{number:012d}.json", b"x")
    last = store.last(folder)
    assert last is not None
    assert last.uri == f"{folder}/000000000012.json"
    assert store.last(folder, after="000000000012.json") is None


def test_delete_many(store: Store, folder: str):
    """Existing and missing objects go in one call."""
    uris = [f"{folder}/{number}" for number in range(20)]
    for uri in uris[::2]:
        store.put(uri, b"x")
    store.delete(uris)
    assert list(store.list(folder)) == []


def test_a_stale_upload_is_found_and_aborted(store: Store, folder: str):
    """A multipart upload that nobody finished is listed once it is old enough, and gone after the abort."""
    bucket, key = split_uri(f"{folder}/huge")
    connect_control(store._settings).create_multipart_upload(Bucket=bucket, Key=key)
    assert not [upload for upload in store.control.stale_uploads(timedelta(hours=1)) if upload.uri == f"{folder}/huge"]
    stale = [upload for upload in store.control.stale_uploads(timedelta(seconds=-5)) if upload.uri == f"{folder}/huge"]
    assert len(stale) == 1
    store.control.abort_upload(stale[0])
    assert not [
        upload for upload in store.control.stale_uploads(timedelta(seconds=-5)) if upload.uri == f"{folder}/huge"
    ]


def test_fsspec_sees_what_obstore_wrote(store: Store, folder: str):
    """Both clients name the same objects, and neither lists from a memory."""
    files = store.filesystem()
    bare = folder.removeprefix("s3://")
    assert not files.exists(f"{bare}/late")
    store.put(f"{folder}/late", b"now")
    assert files.exists(f"{bare}/late")
    with files.open(f"{bare}/late", "rb") as file:
        assert file.read() == b"now"


def test_options_for_a_block_hold_no_secret(store: Store, settings: Settings):
    """What is stored in Prefect's database is an address, never a credential."""
    assert settings.s3_secret_key is not None
    told = repr(store.filesystem_options(with_credentials=False))
    assert settings.s3_secret_key.get_secret_value() not in told
    assert str(settings.s3_access_key) not in told


def _pattern(size: int) -> bytes:
    """Bytes that differ from part to part."""
    return b"".join(number.to_bytes(8, "big") for number in range(size // 8 + 1))[:size]


def test_encryption_is_asked_for_with_every_write(store: Store, settings: Settings, tmp_path: Path):
    """With the setting on, the store reports encryption at rest for bytes, files, created objects and s3fs alike."""
    encrypted = Store(settings.model_copy(update={"s3_encryption": "AES256"}))
    folder = f"{encrypted.root}/tests/encrypted-{uuid4().hex}"
    (tmp_path / "file").write_bytes(b"secret")
    encrypted.put(f"{folder}/put", b"secret")
    encrypted.put_new(f"{folder}/put_new", b"secret")
    encrypted.upload(tmp_path / "file", f"{folder}/upload")
    with encrypted.filesystem().open(f"{folder}/s3fs", "wb") as file:
        file.write(b"secret")
    for name in ("put", "put_new", "upload", "s3fs"):
        bucket, key = split_uri(f"{folder}/{name}")
        assert (
            connect_control(encrypted._settings).head_object(Bucket=bucket, Key=key)["ServerSideEncryption"] == "AES256"
        ), name
        assert encrypted.get(f"{folder}/{name}") == b"secret"


def test_listing_with_a_wrong_secret_is_refused_at_once(settings: Settings, store: Store):
    """A refused listing is permanent like any other refusal, and its sentence names the place, not raw XML."""
    stranger = Store(settings.model_copy(update={"s3_secret_key": SecretStr("wrong")}))
    with pytest.raises(StoreRefused, match="refused the credentials") as refusal:
        list(stranger.list(store.root))
    assert "<" not in str(refusal.value)


def test_a_store_behind_a_private_authority(store: Store, settings: Settings, tmp_path: Path):
    """With the authority's certificate as a setting every client talks TLS to it; without, the setting is named."""
    authority, certificate = private_authority(tmp_path)
    with front(settings.store_port, certificate) as tls:
        address = {"s3_endpoint_url": f"https://127.0.0.1:{tls.port}"}
        trusting = Store(settings.model_copy(update={**address, "s3_ca_bundle": authority}))
        uri = f"{trusting.root}/tests/tls-{uuid4().hex}"
        assert trusting.put_new(uri, b"over TLS")
        assert trusting.get(uri) == b"over TLS"
        trusting.control.create_bucket()
        assert trusting.filesystem().cat_file(uri.removeprefix("s3://")) == b"over TLS"
        wary = Store(settings.model_copy(update={**address, "s3_timeout_seconds": 0.5}))
        with pytest.raises(StoreRefused, match="MODELYARD_S3_CA_BUNDLE"):
            wary.get(uri)
        with pytest.raises(StoreRefused, match="MODELYARD_S3_CA_BUNDLE"), control_translated(uri):
            raise SSLError(endpoint_url=uri, error="certificate verify failed")  # boto3 takes 7 s to get there


@pytest.mark.parametrize(("kind", "header"), [("oss", b"x-oss-forbid-overwrite"), ("cos", b"x-cos-forbid-overwrite")])
def test_stores_with_a_header_of_their_own_are_asked_by_it(store: Store, settings: Settings, kind: str, header: bytes):
    """The header goes with a create and with nothing else; a store that does not honour it is refused by the probe."""
    with front(settings.store_port) as plain:
        update = {"s3_endpoint_url": f"http://127.0.0.1:{plain.port}", "s3_create_only": kind}
        other = Store(settings.model_copy(update=update))
        uri = f"{other.root}/tests/{kind}-{uuid4().hex}"
        other.put(uri, b"any")
        assert header not in plain.heard.lower()
        other.put_new(f"{uri}-new", b"new")
        assert header + b": true" in plain.heard.lower()
        assert b"if-none-match" not in plain.heard.lower()
        with pytest.raises(StoreRefused, match="MODELYARD_S3_CREATE_ONLY"):
            other.probe()
