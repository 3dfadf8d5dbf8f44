"""Bytes to and from an S3 bucket: the only package that imports obstore, s3fs or boto3.

    store.py      `Store`: objects by URI; `Store.put_new` is the primitive that every commit rests on
    transfer.py   large files in parallel parts
    resumable.py  uploads that go on where a killed one stopped
    control.py    buckets and stale uploads
    clients.py    the clients, made from settings
    failures.py   their exceptions as ours
    uris.py       ``s3://bucket/key``

Three clients, each where it is best (measured, see `benchmarks/storage.py`): obstore moves bytes, s3fs is handed to
libraries whose contract is fsspec, boto3 does what is done once.
"""

from modelyard.storage.control import StaleUpload
from modelyard.storage.store import ObjectInfo, Store
from modelyard.storage.uris import split_uri

__all__ = ["ObjectInfo", "StaleUpload", "Store", "split_uri"]
