"""POST /v1/embeddings: texts as vectors, made of the model's last hidden states.

`pooling` "mean" (the default) takes the mean over all tokens of the text, "last" the last token's
state. The vectors are scaled to length 1 unless `normalize` is false. A model that was not trained
for embeddings gives vectors in which similar texts lie closer than others, and no more than that.
"""

from __future__ import annotations

import array
import base64
import math
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest

from anyorder.core.errors import InvalidRequest
from anyorder.core.request import Request
from anyorder.server.completions import prompts_of
from anyorder.server.schemas import Body, Texts
from anyorder.server.service import Service, salt_of

router = APIRouter()


class EmbeddingBody(Body):
    """A text, some texts, token ids, or lists of them."""

    input: Texts
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Literal["mean", "last"] = "mean"
    normalize: bool = True
    user: str | None = Field(None, description="a label of the caller; it changes nothing")


@router.post("/v1/embeddings")
async def create(body: EmbeddingBody, http: HttpRequest) -> dict[str, Any]:
    """Embed texts."""
    service: Service = http.app.state.service
    service.check_model(body.model)
    inputs = prompts_of(service, body.input, "input")

    def build() -> list[Request]:
        return [_request(service, http, body, text) for text in inputs]

    completions = await service.run(http, build, num_choices=len(inputs))
    data = []
    for index, completion in enumerate(completions):
        assert completion.embedding is not None, "it was asked for"
        vector = _scaled(completion.embedding) if body.normalize else completion.embedding
        shown = _encoded(vector) if body.encoding_format == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": shown})
    num_tokens = sum(len(completion.prompt_tokens) for completion in completions)
    num_passes = sum(completion.report.num_forward_passes for completion in completions)
    counts = {"prompt_tokens": num_tokens, "total_tokens": num_tokens, "forward_passes": num_passes}
    return {"object": "list", "model": service.name, "data": data, "usage": counts}


def _request(
    service: Service, http: HttpRequest, body: EmbeddingBody, text: str | list[int]
) -> Request:
    ids = service.texts.encode(text) if isinstance(text, str) else text
    if not ids:
        raise InvalidRequest("input is empty; give at least one token.")
    service.check_prompt(ids, "input")
    salt = salt_of(http, "")
    return Request(prompt=ids, max_new_tokens=0, embedding=body.pooling, cache_salt=salt)


def _scaled(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector] if length else vector


def _encoded(vector: list[float]) -> str:
    """float32, lowest byte first."""
    return base64.b64encode(array.array("f", vector).tobytes()).decode()
