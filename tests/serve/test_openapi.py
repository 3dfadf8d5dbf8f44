"""The OpenAPI document, and what a fuzzer makes of it: whatever is sent, the answer is one that the document names."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.serve.packages import ROWS
from tests.serve.processes import TOKEN, Endpoint

INFER = "/v2/models/digits/infer"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture(scope="module")
def endpoint(digits_endpoint: Endpoint) -> Endpoint:
    return digits_endpoint


def fuzz(endpoint: Endpoint, folder: Path, num_examples: int, phases: str) -> None:
    """Let schemathesis loose on every operation; its report is the failure."""
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", f"{endpoint.url}/openapi.json", "--checks", CHECKS,
            "--max-examples", str(num_examples), "--seed", "1", "--request-timeout", "10", "--phases", phases,
            "--no-color", "--exclude-path", "/admin/notify", "--header", f"Authorization: Bearer {TOKEN}",
        ],
        cwd=folder,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"([1-9]\d+) generated, \1 passed", done.stdout), done.stdout[-2000:]


def still_serves(endpoint: Endpoint) -> None:
    """After all that the first worker answers, and nothing was restarted."""
    assert endpoint.client.post("/invocations", json={"inputs": ROWS.tolist()}).status_code == 200
    assert endpoint.status()["models"]["digits"]["versions"][0]["restarts"] == 0


def test_the_document_names_what_is_served(endpoint: Endpoint):
    """Paths take the model and version that are served, and every path that needs no parameter answers."""
    document = endpoint.client.get("/openapi.json").json()
    [model, version] = document["paths"]["/v2/models/{model}/versions/{version}"]["get"]["parameters"]
    assert (model["schema"]["enum"], version["schema"]["enum"]) == (["digits"], ["7"])
    for path, verbs in document["paths"].items():
        if "get" in verbs and "{" not in path:
            assert endpoint.client.get(path).status_code == 200, path
    assert set(endpoint.client.get("/").json()["links"]) <= set(document["paths"])


def test_schemathesis_finds_nothing_quickly(endpoint: Endpoint, tmp_path: Path):
    """A few examples an operation: no 5xx, no status, type or schema that the document does not name."""
    fuzz(endpoint, tmp_path, num_examples=5, phases="fuzzing")
    still_serves(endpoint)


@pytest.mark.soak
def test_schemathesis_finds_nothing(endpoint: Endpoint, tmp_path: Path):
    """The same at length."""
    fuzz(endpoint, tmp_path, num_examples=300, phases="examples,coverage,fuzzing")
    still_serves(endpoint)


def mutants(count: int) -> list[tuple[bytes, dict[str, str]]]:
    """A good binary request with bytes changed, cut out, put in; and headers that do not fit it."""
    chance = random.Random(0)
    head = (
        b'{"inputs":[{"name":"features","shape":[1,4],"datatype":"FP32","parameters":{"binary_data_size":16}}],'
        b'"parameters":{"binary_data_output":true}}'
    )
    made = []
    for _ in range(count):
        body = bytearray(head + struct.pack("<4f", 1, 2, 3, 4))
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(body))
            change = chance.randrange(3)
            if change == 0:
                body[at] = chance.randrange(256)
            elif change == 1:
                del body[at : at + chance.randrange(1, 20)]
            else:
                body[at:at] = chance.randbytes(chance.randrange(1, 20))
        length = chance.choice([len(head)] * 6 + [0, len(head) - 1, len(body), len(body) + 1, 2**63])
        headers = {"Inference-Header-Content-Length": str(length)}
        if chance.random() < 0.1:
            headers["Content-Encoding"] = chance.choice(["gzip", "deflate"])
        made.append((bytes(body), headers))
    return made


def send_mutants(endpoint: Endpoint, count: int) -> None:
    """Each gets an answer, and none of them a 5xx."""
    statuses = set()
    for body, headers in mutants(count):
        response: httpx.Response = endpoint.client.post(INFER, content=body, headers=headers)
        assert response.status_code in (200, 400, 413), (body, headers, response.text)
        statuses.add(response.status_code)
    assert {200, 400} <= statuses


def test_mutants_of_a_binary_request(endpoint: Endpoint):
    """Damaged binary requests are answered or refused, and the next request is none the worse."""
    send_mutants(endpoint, 300)
    still_serves(endpoint)


@pytest.mark.soak
def test_many_mutants_of_a_binary_request(endpoint: Endpoint):
    """The same at length; the router's memory does not follow."""
    send_mutants(endpoint, 2_000)
    before = resident_bytes(endpoint)
    send_mutants(endpoint, 20_000)
    assert resident_bytes(endpoint) < before + 20 * 2**20
    still_serves(endpoint)


def resident_bytes(endpoint: Endpoint) -> int:
    pages = Path(f"/proc/{endpoint.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
