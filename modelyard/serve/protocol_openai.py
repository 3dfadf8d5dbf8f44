"""Parts of OpenAI's API: the list of models, and embeddings (https://platform.openai.com/docs/api-reference)."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import orjson

from modelyard.errors import DataError
from modelyard.revisions import Revision
from modelyard.serve.answers import JSON, Headers
from modelyard.serve.bodies import Head, refuse_kind
from modelyard.serve.datatypes import BadRequestError, parse_object
from modelyard.serve.inference import Dialect
from modelyard.serve.texts import tokens_of
from modelyard.serve.wire import Tensor
from modelyard.serve.worker_info import WorkerInfo
from modelyard.transform import TextTransform
from modelyard.transform.text import padded

PREFIX, EMBEDDINGS = "/v1/models", "/v1/embeddings"
VECTORS = "embedding"  # what a model for embedding answers
MAX_INPUTS = 2048  # of one request, as OpenAI has it


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Tokens of texts (n, t) int64, and how the client wants their vectors."""

    rows: np.ndarray
    encoding: Literal["float", "base64"]


class Embeddings(Dialect):
    """The dialect of `/v1/embeddings`: texts, or tokens of the model's own tokenizer, to vectors."""

    def read(self, body: bytes, head: Head, model: str, info: WorkerInfo) -> EmbeddingRequest:
        """A request body as rows of tokens.

        Raises:
            HttpError: 415.
            BadRequestError: says what is wrong with it.
        """
        refuse_kind(head, b"application/json")
        width = next((columns for name, _, columns in info.outputs if name == VECTORS), 0)
        if not width or not isinstance(info.transform, TextTransform):
            raise BadRequestError(f"model {model!r} makes no embeddings; /v2/models/{model} says what it does")
        document = parse_object(body)
        encoding = document.get("encoding_format", "float")
        if encoding not in ("float", "base64"):
            raise BadRequestError(f"'encoding_format' is float or base64, not {encoding!r}")
        if document.get("dimensions", width) != width:
            raise BadRequestError(f"the vectors of {model!r} have {width} dimensions, and are not shortened")
        try:
            return EmbeddingRequest(_tokens(document.get("input"), info.transform), encoding)
        except DataError as failure:
            raise BadRequestError(str(failure)) from None

    def write(
        self,
        answers: Mapping[str, Tensor],
        info: WorkerInfo,  # noqa: ARG002 (it was asked when the request was read)
        request: EmbeddingRequest,
        *,
        model: str,
        version: str,  # noqa: ARG002 (the protocol has no place for it; the headers do)
        request_id: str,  # noqa: ARG002 (the same)
    ) -> tuple[bytes, Headers]:
        """`{"object": "list", "data": [{"embedding": ..., "index": 0, ...}], "usage": ...}`."""
        vectors = answers[VECTORS]
        assert isinstance(vectors, np.ndarray)
        as_text = request.encoding == "base64"
        data = [
            {"object": "embedding", "index": number, "embedding": _base64(vector) if as_text else vector}
            for number, vector in enumerate(vectors)
        ]
        used = int((request.rows >= 0).sum())
        usage = {"prompt_tokens": used, "total_tokens": used}
        document = {"object": "list", "data": data, "model": model, "usage": usage}
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), [JSON]


def model_of(body: bytes) -> str:
    """Which model a request is for.

    Raises:
        BadRequestError: it does not say.
    """
    model = parse_object(body).get("model")
    if not isinstance(model, str) or not model:
        raise BadRequestError("'model' must name one of those that /v1/models lists")
    return model


def _tokens(given: Any, transform: TextTransform) -> np.ndarray:
    """A text or several, or the tokens of one or several, as rows."""
    inputs = [given] if isinstance(given, str) or _are_numbers(given) else given
    if not isinstance(inputs, list) or not inputs:
        raise BadRequestError("'input' must be a text, a list of texts, or tokens")
    if len(inputs) > MAX_INPUTS:
        raise BadRequestError(f"'input' has {len(inputs)} texts, at most {MAX_INPUTS} are answered at once")
    if all(isinstance(text, str) for text in inputs):
        if "" in inputs:
            raise BadRequestError(f"text {inputs.index('')} of 'input' is empty")
        return tokens_of(transform, inputs)
    if all(_are_numbers(numbers) for numbers in inputs):
        return transform.apply(_filled(inputs))
    raise BadRequestError("'input' must hold texts alone, or lists of tokens alone")


def _are_numbers(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(number) is int and number >= 0 for number in given)


def _filled(inputs: Sequence[Sequence[int]]) -> np.ndarray:
    try:
        return padded(inputs)
    except OverflowError:
        raise BadRequestError("a token's number is too large") from None


def _base64(vector: np.ndarray) -> str:
    """Little-endian float32, as OpenAI's clients decode them."""
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode()


def listed(names: list[str], revision: Revision) -> dict[str, Any]:
    """Every model that is served."""
    return {"object": "list", "data": [described(name, revision) for name in names]}


def described(name: str, revision: Revision) -> dict[str, Any]:
    """One model; ``created`` is when the revision that is served was written, in seconds since the epoch."""
    created = int(datetime.fromisoformat(revision.created_at).timestamp())
    return {"id": name, "object": "model", "created": created, "owned_by": "modelyard"}
