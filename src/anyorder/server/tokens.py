"""/tokenize, /detokenize and /score: texts, ids and their log-probabilities."""

from __future__ import annotations

import math
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest

from anyorder.core.errors import InvalidRequest
from anyorder.core.request import Request
from anyorder.server.messages_in import ChatMessage, Tool
from anyorder.server.schemas import Body, Many
from anyorder.server.service import Service, salt_of
from anyorder.server.shapes import clamped, usage
from anyorder.server.texts import template_message

router = APIRouter()


class TokenizeBody(Body):
    """A text, or messages."""

    model: str | None = None
    text: str | None = None
    add_special: bool = True
    messages: Many[ChatMessage] | None = None
    tools: list[Tool] | None = None
    add_generation_prompt: bool = True


class DetokenizeBody(Body):
    """Token ids."""

    model: str | None = None
    tokens: Many[int]
    skip_special: bool = False


class ScoreBody(Body):
    """A text or token ids."""

    model: str | None = None
    text: str | Many[int]


@router.post("/tokenize")
def tokenize(body: TokenizeBody, http: HttpRequest) -> dict[str, Any]:
    """Token ids of a text, or of messages as the chat template lays them out."""
    service: Service = http.app.state.service
    service.check_model(body.model)
    if (body.text is None) == (body.messages is None):
        raise InvalidRequest("give either text or messages.")
    if body.tools and body.messages is None:
        raise InvalidRequest("tools need messages.")
    if body.text is not None:
        ids = service.texts.encode(body.text, add_special=body.add_special)
    else:
        messages = [template_message(m.model_dump()) for m in body.messages or ()]
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
        ids = service.texts.encode_chat(
            messages, tools=tools or None, add_generation_prompt=body.add_generation_prompt
        )
    texts = [service.texts.token_text(token) for token in ids]
    length = service.engine.abilities.context_length
    return {"tokens": ids, "count": len(ids), "texts": texts, "context_length": length}


@router.post("/detokenize")
def detokenize(body: DetokenizeBody, http: HttpRequest) -> dict[str, Any]:
    """The text of token ids."""
    service: Service = http.app.state.service
    service.check_model(body.model)
    size = service.engine.abilities.vocabulary_size
    for token in body.tokens:
        if not 0 <= token < size:
            raise InvalidRequest(f"tokens holds {token}; token ids are 0 to {size - 1}.")
    return {"text": service.texts.decode(body.tokens, skip_special=body.skip_special)}


@router.post("/score")
async def score(body: ScoreBody, http: HttpRequest) -> dict[str, Any]:
    """Log-probabilities by the chain rule, one for every token after the first."""
    service: Service = http.app.state.service
    service.check_model(body.model)

    def build() -> list[Request]:
        ids = service.texts.encode(body.text) if isinstance(body.text, str) else body.text
        service.check_prompt(ids, "text")
        if len(ids) < 2:
            raise InvalidRequest("text is a single token; a score needs at least two.")
        salt = salt_of(http, "")
        return [Request(prompt=ids, max_new_tokens=0, prompt_logprobs=True, cache_salt=salt)]

    (completion,) = await service.run(http, build, num_choices=1)
    logprobs = [clamped(value) for value in completion.prompt_logprobs or ()]
    mean = sum(logprobs) / len(logprobs)
    return {
        "object": "score",
        "model": service.name,
        "tokens": completion.prompt_tokens,
        "texts": [service.texts.token_text(token) for token in completion.prompt_tokens],
        "logprobs": logprobs,
        "total": sum(logprobs),
        "mean": mean,
        "perplexity": math.exp(min(-mean, 700.0)),
        "usage": usage([completion]),
    }
