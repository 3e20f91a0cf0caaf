"""Every failure in one envelope: {"error": {"message", "type", "param", "code"}}.

"type": "error" beside it is what clients of /v1/messages look for. Texts of status 500 say nothing
of what happened inside; the log does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from anyorder.core.errors import AnyorderError, GuideError, UnsupportedMethod, UserError

log = logging.getLogger("anyorder.server")

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_FIELDS = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_tokens": "stop_token_ids",
    "ignore_end": "ignore_eos",
    "prompt_logprobs": "echo",
    "guide": "response_format",
}
_LONGEST = 1000
"""Characters of a message."""
_TEXTS = ("prompt", "messages", "input", "text")
"""Where the text itself is in a body."""
_GUIDES = ("response_format", "text", "tools")
"""Where grammars are."""
"""Names that the engine's messages use, and what clients call them."""
_NAMES = re.compile(r"\b(" + "|".join(_FIELDS) + r")\b(?!\.)")


class ApiError(HTTPException):
    """A request that is refused."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers=headers)
        self.param = param
        self.code = code


def envelope(error: Exception, fields: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    """Status and body for an exception; `fields` are those that the request's body has."""
    param = code = None
    if isinstance(error, HTTPException):
        status, message = error.status_code, str(error.detail)
        if isinstance(error, ApiError):
            param, code = error.param, error.code
    elif isinstance(error, RequestValidationError):
        status = 400
        message, param, code = _invalid(error)
    elif isinstance(error, UserError):
        status, message = 400, _NAMES.sub(lambda found: _FIELDS[found[1]], str(error))
        param = _param(error, message, fields)
    else:
        log.error("a request failed", exc_info=error)
        status, message = 500, "the request failed inside the server; its log says why."
    if len(message) > _LONGEST:  # it quotes what was sent
        message = message[:_LONGEST] + "…"
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    body = {"message": message, "type": kind, "param": param, "code": code}
    return status, {"type": "error", "error": body}


def _param(error: UserError, message: str, fields: tuple[str, ...]) -> str | None:
    """The field of the body that a message speaks of: the first, the text itself last."""
    if isinstance(error, UnsupportedMethod):
        return "method"
    if isinstance(error, GuideError):
        return next((field for field in _GUIDES if field in fields), None)
    found = [
        (field in _TEXTS, match.start(), field)
        for field in fields
        if field != "model"
        and (match := re.search(rf"(?<![\w'-]){re.escape(field)}(?![\w-])", message))
    ]
    if found:
        return min(found)[2]
    if " option" in message and "method_options" in fields:
        return "method_options"
    if re.search(r"\b(prompt|messages?|input|text)\b", message):
        return next((field for field in _TEXTS if field in fields), None)
    return None


@contextmanager
def own_names(names: Mapping[str, str]) -> Iterator[None]:
    """Refusals within speak of a body's own fields, where it became the body of another endpoint:
    `names` are its own by those of the other."""
    try:
        yield
    except UserError as error:
        pattern = rf"\b({'|'.join(names)})\b(?!\.)"
        error.args = (re.sub(pattern, lambda found: names[found[1]], str(error)),)
        raise


def _invalid(error: RequestValidationError) -> tuple[str, str | None, str | None]:
    """One line for what may be a list of complaints: the first is as good as any."""
    errors = error.errors()
    first = errors[0]
    if first["type"] == "json_invalid":
        return "the body is not valid JSON.", None, "invalid_json"
    if first["loc"] == ("body",):
        return "send a JSON object, with Content-Type: application/json.", None, "invalid_json"
    # A union complains for each of its members: take one that says more than what was expected.
    same = [one for one in errors if one["loc"][:2] == first["loc"][:2]]
    first = next((one for one in same if not one["type"].endswith("_type")), first)
    names = [part for part in first["loc"] if part not in ("body", "query", "path")]
    path, at = list[str](), error.body
    for number, part in enumerate(names, 1):  # pydantic also names members of unions that it tried
        is_last = number == len(names)
        unknown = first["type"] in ("extra_forbidden", "missing") and is_last
        if isinstance(at, dict) and part == at.get("type") and not is_last:
            continue
        if (isinstance(at, dict) and part in at) or (
            isinstance(at, list) and isinstance(part, int) and part < len(at)
        ):
            at = at[part]
        elif not unknown:
            continue
        path.append(str(part))
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"unknown or unsupported field {where!r}; leave it out.", where, "unknown_field"
    if first["type"] == "missing":
        return f"the field {where!r} is missing.", where, "missing_field"
    if first["type"] == "union_tag_invalid":
        where += ".type"
        return f"{where}: input should be {first['ctx']['expected_tags']}.", where, None
    message = str(first["msg"])
    return f"{where or 'the body'}: {message[:1].lower()}{message[1:]}.", where or None, None


async def respond(request: Request, error: Exception) -> JSONResponse:
    """The exception as an answer."""
    fields: tuple[str, ...] = ()
    if isinstance(error, UserError):
        body = await request.json()
        fields = tuple(body)
    status, body = envelope(error, fields)
    headers = dict(getattr(error, "headers", None) or {})
    return JSONResponse(body, status, headers=headers)


def add_handlers(app: FastAPI) -> None:
    """Let all failures take this form."""
    for kind in (HTTPException, RequestValidationError, AnyorderError, Exception):
        app.add_exception_handler(kind, respond)
