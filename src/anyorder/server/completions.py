"""POST /v1/completions: continue texts or token ids, fill in before a suffix, score with echo."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator
from collections.abc import Sequence as Seq
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest
from anyorder.core.method import Method
from anyorder.core.request import Choice, Completion, Request
from anyorder.server.merging import merged
from anyorder.server.schemas import Sampling, Texts, check_limits, check_number, make_request
from anyorder.server.service import Service, Tickets
from anyorder.server.shapes import log_alternatives, new_id, text_logprobs, usage, usage_of
from anyorder.server.sse import DONE, EventStream, event
from anyorder.server.worker import Delta, Ticket

router = APIRouter()
DEFAULT_TOKENS = 16


class CompletionBody(Sampling):
    """A text, some texts, token ids, or lists of them, to be continued."""

    prompt: Texts
    max_tokens: int | None = Field(None, description="16 if absent")
    suffix: str | None = Field(None, description="what comes after the text that is asked for")
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None

    @property
    def num_choices(self) -> int:
        """Texts to return for a prompt."""
        return 1 if self.n is None else self.n


@router.post("/v1/completions", response_model=None)
async def create(body: CompletionBody, http: HttpRequest) -> Response | dict[str, Any]:
    """Complete texts."""
    service: Service = http.app.state.service
    service.check_model(body.model)
    prompts = prompts_of(service, body.prompt)
    check(service, body)
    num_made = body.best_of or body.num_choices

    def build() -> list[Request]:
        return [build_request(service, http, body, prompt) for prompt in prompts]

    num = num_made * len(prompts)
    writer = _Writer(service, body)
    if body.stream:
        tickets = await service.open(http, build, num_choices=num)
        return EventStream(service, tickets, writer.stream(tickets))
    return writer.answer(await service.run(http, build, num_choices=num))


def prompts_of(
    service: Service, given: str | list[Any], name: str = "prompt"
) -> list[str | list[int]]:
    """One or several prompts; InvalidRequest for none or too many."""
    prompts: list[Any] = [given]
    if isinstance(given, list) and (not given or not isinstance(given[0], int)):
        prompts = given
    if not prompts:
        raise InvalidRequest(f"{name} is empty; give at least one.")
    check_number(f"the number of {name}", len(prompts), service.limits.max_prompts)
    return prompts


def check(service: Service, body: CompletionBody) -> None:
    """Refuse what this endpoint cannot honour together."""
    limits = service.limits
    check_limits(limits, body)
    check_number("max_tokens", body.max_tokens, limits.max_tokens)
    check_number("logprobs", body.logprobs, limits.max_logprobs)
    check_number("best_of", body.best_of, limits.max_choices)
    if body.best_of is not None and body.best_of < body.num_choices:
        raise InvalidRequest(f"best_of is {body.best_of}, less than n ({body.num_choices}).")
    if body.best_of is not None and body.best_of > body.num_choices and body.stream:
        raise InvalidRequest("best_of above n cannot be streamed: the best is known at the end.")
    if body.suffix and body.echo:
        raise InvalidRequest("suffix and echo exclude each other.")
    if body.suffix and body.canvas is not None:
        raise InvalidRequest("suffix and canvas exclude each other: end the canvas with it.")
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens is 0, which makes sense with echo only; give at least 1.")
    if body.max_tokens == 0 and body.stream:
        raise InvalidRequest("max_tokens is 0, so there is nothing to stream; leave stream out.")


def build_request(
    service: Service, http: HttpRequest, body: CompletionBody, prompt: str | list[int]
) -> Request:
    """The engine's request for one prompt; for the preparing thread."""
    method: type[Method] = lookup.find("methods", service.method_of(body), kind="method")
    ids = service.texts.encode(prompt) if isinstance(prompt, str) else prompt
    length = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    canvas: list[int | None] | None = None
    if body.suffix:
        suffix = service.texts.encode(body.suffix, add_special=False)
        marks = service.engine.abilities.infill_tokens
        if method.fills_canvas:
            if body.stream:
                raise InvalidRequest(
                    f"suffix with {service.method_of(body)} cannot be streamed: the suffix "
                    "is part of its canvas; ask without stream, or see /v1/canvas."
                )
            canvas = [*([None] * length), *suffix]
        elif marks is not None:
            before, behind, middle = marks
            ids = [before, *ids, behind, *suffix, middle]
        else:
            raise InvalidRequest(
                f"suffix: {service.name} was not trained to fill in a middle, and "
                f"{service.method_of(body)} writes from left to right; leave suffix out."
            )
    service.check_prompt(ids, "prompt")
    request = make_request(
        service,
        http,
        body,
        ids,
        max_new_tokens=None if canvas or body.canvas is not None else length,
        logprobs=body.logprobs or 0,
        prompt_logprobs=length == 0 or bool(body.echo and body.logprobs is not None),
    )
    if canvas is not None:
        request = dataclasses.replace(request, canvas=canvas)
    return dataclasses.replace(request, n=body.best_of) if body.best_of else request


class _Writer:
    """One call's answers in OpenAI's form."""

    def __init__(self, service: Service, body: CompletionBody) -> None:
        self._texts = service.texts
        self._body = body
        self._head = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.name,
            "method": service.method_of(body),
        }

    def answer(self, completions: list[Completion]) -> dict[str, Any]:
        """All of it at once."""
        choices = []
        for completion in completions:
            best = completion.choices
            if self._body.best_of:
                best = tuple(sorted(best, key=_mean, reverse=True)[: self._body.num_choices])
            choices += [self._choice(completion, choice) for choice in best]
        numbered = [{"index": index, **choice} for index, choice in enumerate(choices)]
        return {**self._head, "choices": numbered, "usage": usage(completions)}

    def _choice(self, completion: Completion, choice: Choice) -> dict[str, Any]:
        body = self._body
        text, tokens = choice.text, choice.tokens
        num = len(tokens)
        if body.suffix and self._is_canvas(completion):
            num = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
            text = self._texts.decode(tokens[:num])
        data: dict[str, Any] = {"finish_reason": choice.finish_reason}
        shown: dict[str, Any] = {"text": "", "logprobs": None}
        if body.echo:
            shown = self._echo(
                completion.prompt_tokens,
                completion.prompt_logprobs,
                completion.prompt_alternatives,
            )
        own = self._logprobs(
            tokens[:num], choice.logprobs[:num], choice.trace[:num], offset=len(shown["text"])
        )
        return {"text": shown["text"] + text, **data, "logprobs": _joined(shown["logprobs"], own)}

    def _is_canvas(self, completion: Completion) -> bool:
        cls: type[Method] = lookup.find("methods", completion.method, kind="method")
        return cls.fills_canvas

    def _echo(
        self,
        prompt: list[int],
        logprobs: list[float] | None,
        alternatives: Seq[Seq[tuple[int, float]]] | None,
    ) -> dict[str, Any]:
        """The prompt as the beginning of the text."""
        text = self._body.prompt if isinstance(self._body.prompt, str) else None
        text = self._texts.decode(prompt, skip_special=False) if text is None else text
        scores = None
        if self._body.logprobs is not None:
            scores = text_logprobs(
                self._texts,
                prompt,
                [None, *(logprobs or ())],
                [None, *(alternatives or ())],
                self._texts.offsets(prompt),
            )
        return {"text": text, "logprobs": scores}

    def _logprobs(
        self, tokens: Any, logprobs: Any, trace: Any, *, offset: int
    ) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        others = [log_alternatives(entry) for entry in trace]
        offsets = [offset + at for at in self._texts.offsets(tokens)]
        return text_logprobs(self._texts, tokens, logprobs, others, offsets)

    # ---------------------------------------------------------------------------------- streaming
    async def stream(self, tickets: Tickets) -> AsyncIterator[str]:
        """All of it as it comes."""
        body = self._body
        with tickets as open_tickets:
            lengths: dict[int, int] = {}
            async for number, delta in merged(open_tickets):
                index = number * body.num_choices + delta.choice
                if index not in lengths:
                    lengths[index] = 0
                    if body.echo:
                        lengths[index], chunk = self._prompt_chunk(open_tickets[number], index)
                        yield chunk
                yield self._chunk(self._delta(index, delta, lengths[index]))
                lengths[index] += len(delta.text)
            if body.wants_usage:
                yield self._chunk(None, usage=usage_of(open_tickets))
            yield DONE

    def _prompt_chunk(self, ticket: Ticket, index: int) -> tuple[int, str]:
        handle = ticket.handle
        shown = self._echo(
            handle.prepared.given, handle.prompt_logprobs, handle.prompt_alternatives
        )
        return len(shown["text"]), self._chunk({"index": index, **shown, "finish_reason": None})

    def _delta(self, index: int, delta: Delta, offset: int) -> dict[str, Any]:
        return {
            "index": index,
            "text": delta.text,
            "logprobs": self._logprobs(delta.tokens, delta.logprobs, delta.trace, offset=offset),
            "finish_reason": delta.finish_reason,
        }

    def _chunk(self, choice: dict[str, Any] | None, usage: dict[str, Any] | None = None) -> str:
        data = {**self._head, "choices": [] if choice is None else [choice]}
        if self._body.wants_usage:
            data["usage"] = usage
        return event(data)


def _mean(choice: Choice) -> float:
    """What best_of takes the best by: log-probability per token."""
    return sum(choice.logprobs) / max(len(choice.logprobs), 1)


def _joined(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    if first is None or second is None:
        return second
    return {name: [*first[name], *second[name]] for name in first}
