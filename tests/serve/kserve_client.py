"""Asks an endpoint by KServe's own client, and prints what it said. Runs in an environment of its own.

python kserve_client.py <url of the endpoint> <rows as JSON>
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig  # ty: ignore[import-not-found]

MODEL = "digits"


async def ask(url: str, rows: np.ndarray) -> dict[str, Any]:
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=10))
    said: dict[str, Any] = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, MODEL),
    }
    for binary in (False, True):
        tensor = InferInput(name="features", shape=list(rows.shape), datatype="FP32")
        tensor.set_data_from_numpy(rows, binary_data=binary)
        headers: dict[str, str] = {}
        request = InferRequest(model_name=MODEL, infer_inputs=[tensor])
        answer = await client.infer(url, request, model_name=MODEL, response_headers=headers)
        outputs = {output.name: output.as_numpy().tolist() for output in answer.outputs}
        said["binary" if binary else "json"] = outputs | {"version": headers["modelyard-model-version"]}
    try:
        await client.infer(url, {"inputs": []}, model_name=MODEL)
    except httpx.HTTPStatusError as refusal:
        said["refusal"] = str(refusal)
    return said


if __name__ == "__main__":
    print(json.dumps(asyncio.run(ask(sys.argv[1], np.array(json.loads(sys.argv[2]), dtype=np.float32)))))
