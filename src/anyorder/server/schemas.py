"""What bodies share: strict fields, sampling controls, and how they become a `Request`.

Types are strict (no "1" for 1) and unknown fields are refused. Bounds that the engine knows are
left to it, so that there is one place that says what is allowed.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HttpRequest

from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest
from anyorder.core.method import Method
from anyorder.core.options import build
from anyorder.core.request import Guide, Prompt, Request
from anyorder.server.limits import Limits
from anyorder.server.service import Service, salt_of

T = TypeVar("T")
Many = Annotated[list[T], Field(fail_fast=True)]
"""A list of which one wrong item is told, not all of a million."""
Texts = str | Many[str] | Many[int] | Many[Many[int]]
"""A text, some texts, token ids, or lists of them."""


class Body(BaseModel):
    """Base of everything that clients send."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class StreamOptions(Body):
    """How a stream ends."""

    include_usage: bool | None = None


class JsonSchema(Body):
    """A named schema, as response_format has it."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What the text must look like. `regex`, `lark` and `choices` go beyond OpenAI's types."""

    type: Literal["text", "json_object", "json_schema", "regex", "lark", "choices"]
    json_schema: JsonSchema | None = None
    regex: str | None = None
    lark: str | None = None
    choices: Many[str] | None = None


class Extras(Body):
    """Controls beyond those of any client's protocol; every generating endpoint takes them."""

    method: str | None = Field(None, description="decoding method; /v1/methods lists them")
    method_options: dict[str, Any] | None = Field(None, description="the method's own options")
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram: int | None = None
    bad_words: Many[str] | None = None
    stop_token_ids: Many[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    canvas: str | Many[int | None] | None = Field(
        None, description="the new text with places to fill in (<|mask|>, or null among ids)"
    )
    cache_salt: str | None = None


class Sampling(Extras):
    """Controls that OpenAI's generating endpoints share, under the names that clients know."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | Many[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = Field(None, description="a label of the caller; it changes nothing")

    @property
    def wants_usage(self) -> bool:
        """Does the stream end with a chunk of usage?"""
        return bool(self.stream_options and self.stream_options.include_usage)


_SAME = (
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "no_repeat_ngram",
    "bad_words",
    "guidance_scale",
    "negative_prompt",
    "canvas",
    "n",
)
"""Fields that mean in a request what they mean in a body."""
_RENAMED = {
    "ignore_eos": "ignore_end",
    "min_tokens": "min_new_tokens",
    "stop_token_ids": "stop_tokens",
}


def make_request(
    service: Service,
    http: HttpRequest,
    body: Sampling,
    prompt: Prompt,
    *,
    guide: Guide | None = None,
    max_new_tokens: int | None = None,
    logprobs: int = 0,
    prompt_logprobs: bool = False,
    history: bool = False,
) -> Request:
    """The engine's request for a body; the keywords are what the endpoint itself decides."""
    given = {name: getattr(body, name) for name in _SAME}
    given |= {own: getattr(body, name) for name, own in _RENAMED.items()}
    given["stop"] = [body.stop] if isinstance(body.stop, str) else body.stop
    given["logit_bias"] = None if body.logit_bias is None else _biases(body.logit_bias)
    given["guide"] = guide or read_guide(service.limits, body.response_format)
    given["options"] = body.method_options
    request = Request(
        prompt=prompt,
        method=service.method_of(body),
        seed=secrets.randbits(62) if body.seed is None else body.seed,
        cache_salt=salt_of(http, body.cache_salt or ""),
        max_new_tokens=max_new_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        history=history,
        **{name: value for name, value in given.items() if value is not None},
    )
    temperature = default_temperature(request) if body.temperature is None else body.temperature
    return dataclasses.replace(request, temperature=temperature)


def default_temperature(request: Request) -> float:
    """1, as clients expect; 0 for methods that draw nothing."""
    cls: type[Method] = lookup.find("methods", request.method, kind="method")
    method = build(cls, request.options, kind=f"{request.method} option")
    try:
        method.check(dataclasses.replace(request, temperature=1.0))
    except InvalidRequest:
        return 0.0
    return 1.0


def check_limits(limits: Limits, body: Sampling) -> None:
    """InvalidRequest for more than this server allows."""
    for name, largest in (("n", limits.max_choices), ("min_tokens", limits.max_tokens)):
        check_number(name, getattr(body, name), largest)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream to be true.")
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    words = body.bad_words or []
    for name, texts in (("stop", stops), ("bad_words", words)):
        check_number(f"the number of {name}", len(texts), limits.max_stops)
        longest = max(map(len, texts), default=0)
        check_number(f"the length of {name}", longest, limits.max_stop_length)
    check_number("the number of stop_token_ids", len(body.stop_token_ids or ()), limits.max_biases)
    check_number("the number of logit_bias", len(body.logit_bias or ()), limits.max_biases)
    check_number("the length of canvas", len(body.canvas or ()), limits.max_body_bytes)


def check_number(name: str, value: int | None, largest: int) -> None:
    """InvalidRequest for more than this server allows."""
    if value is not None and value > largest:
        raise InvalidRequest(f"{name} is {value}; this server allows at most {largest}.")


def _biases(given: dict[str, float]) -> dict[int, float]:
    for token in given:
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise InvalidRequest(f"logit_bias maps token ids to numbers, got {token[:40]!r}.")
    return {int(token): bias for token, bias in given.items()}


def read_guide(limits: Limits, wanted: ResponseFormat | None) -> Guide | None:
    """The guide that a response_format asks for."""
    if wanted is None or wanted.type == "text":
        _refuse_others(wanted, "text")
        return None
    _refuse_others(wanted, wanted.type)
    if wanted.type == "json_object":
        return Guide.json_schema({"type": "object"})
    value = getattr(wanted, wanted.type)
    if value is None:
        raise InvalidRequest(f"response_format of type {wanted.type} needs {wanted.type}.")
    if wanted.type == "json_schema":
        guide = Guide.json_schema(value.schema_)
    else:
        guide = getattr(Guide, wanted.type)(value)
    return checked_guide(limits, guide)


def checked_guide(limits: Limits, guide: Guide) -> Guide:
    """The guide, unless it is too long for this server."""
    check_number("the length of response_format", len(guide.value), limits.max_grammar_length)
    return guide


def _refuse_others(wanted: ResponseFormat | None, kind: str) -> None:
    for name in ("json_schema", "regex", "lark", "choices"):
        if wanted is not None and name != kind and getattr(wanted, name) is not None:
            raise InvalidRequest(f"response_format of type {kind} takes no {name}.")


def parse_json(text: str) -> Any:
    """The value that a text spells, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
