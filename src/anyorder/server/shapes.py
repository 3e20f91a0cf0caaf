"""What answers share: ids, usage, log-probabilities in both of OpenAI's forms."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence as Seq
from typing import Any

from anyorder.core.request import Completion, TraceEntry
from anyorder.server.texts import Texts
from anyorder.server.worker import Ticket

LOWEST = -9999.0
"""What stands for minus infinity, which JSON lacks."""


def new_id(kind: str) -> str:
    """An id that no other answer has."""
    return f"{kind}-{secrets.token_hex(12)}"


def usage(completions: Seq[Completion]) -> dict[str, Any]:
    """Tokens and costs of one call, all its prompts and choices together."""
    reports = [completion.report for completion in completions]
    num_prompt = sum(report.num_prompt_tokens for report in reports)
    num_new = sum(report.num_new_tokens for report in reports)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_new,
        "total_tokens": num_prompt + num_new,
        "prompt_tokens_details": {
            "cached_tokens": sum(report.num_cached_tokens for report in reports)
        },
        **costs(completions),
    }


def costs(completions: Seq[Completion]) -> dict[str, Any]:
    """What the protocols do not tell; seconds are those of the request that took longest."""
    reports = [completion.report for completion in completions]
    num_new = sum(report.num_new_tokens for report in reports)
    num_passes = sum(report.num_forward_passes for report in reports)
    times = {
        name: round(max(getattr(report, f"{name}_seconds") for report in reports), 6)
        for name in ("queue", "prefill", "decode")
    }
    return {
        "forward_passes": num_passes,
        "tokens_per_pass": num_new / max(num_passes, 1),
        "mean_accepted_length": reports[0].mean_accepted_length if len(reports) == 1 else None,
        "exact": all(report.exact for report in reports),
        "seconds": times,
        "notes": list(dict.fromkeys(note for report in reports for note in report.notes)),
    }


def usage_of(tickets: Seq[Ticket]) -> dict[str, Any]:
    """`usage` of requests that are over."""
    return usage([ticket.handle.result() for ticket in tickets])


def clamped(logprob: float) -> float:
    """A number that JSON can hold."""
    return max(logprob, LOWEST)


def chat_logprobs(
    texts: Texts, tokens: Seq[int], logprobs: Seq[float], trace: Seq[TraceEntry]
) -> dict[str, Any]:
    """The form of chat completions."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = texts.token_bytes(token)
        text = data.decode("utf-8", "replace")
        return {"token": text, "logprob": clamped(logprob), "bytes": list(data)}

    content = []
    for token, logprob, made in zip(tokens, logprobs, trace, strict=True):
        others = [entry(other, _log(chance)) for other, chance in made.alternatives]
        content.append({**entry(token, logprob), "top_logprobs": others})
    return {"content": content, "refusal": None}


def text_logprobs(
    texts: Texts,
    tokens: Seq[int],
    logprobs: Seq[float | None],
    alternatives: Seq[Seq[tuple[int, float]] | None],
    offsets: Seq[int],
) -> dict[str, Any]:
    """The form of text completions; `alternatives` are (id, log-probability)."""
    top: list[dict[str, float] | None] = []
    for others in alternatives:
        named = {texts.token_text(t): clamped(value) for t, value in others or ()}
        top.append(None if others is None else named)
    return {
        "tokens": [texts.token_text(token) for token in tokens],
        "token_logprobs": [None if value is None else clamped(value) for value in logprobs],
        "top_logprobs": top,
        "text_offset": list(offsets),
    }


def log_alternatives(entry: TraceEntry) -> list[tuple[int, float]]:
    """(id, log-probability) of what else was likely."""
    return [(token, _log(chance)) for token, chance in entry.alternatives]


def _log(chance: float) -> float:
    return math.log(chance) if chance > 0 else LOWEST
