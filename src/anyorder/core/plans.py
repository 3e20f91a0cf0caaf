"""Plans of planned diffusion (arXiv 2510.18087), read off token ids.

    <topic>Rivers 3</topic><topic>Lakes 2</topic>        the plan: topics with promised lengths
    <async>...</async><async>...</async>                  a span for each topic, in their order
    <sync/>                                               what follows sees the spans

Plan, sync and any text outside of spans are written token by token. Spans are denoised all at
once: a span sees the plan, what came before and itself, and only what follows the next sync sees
the span. Training and decoding both read plans by these functions. Nothing is too malformed to be
read, as models write such things; what each mistake comes to is said below.

Not here: writing plans (training.planning), denoising.

Shape suffixes: B rows, T tokens each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TOPIC, TOPIC_END, SPAN, SPAN_END = "<topic>", "</topic>", "<async>", "</async>"
SYNC, PAD = "<sync/>", "<pad>"
TAGS = (TOPIC, TOPIC_END, SPAN, SPAN_END, SYNC, PAD)
"""The control tokens that a tokenizer needs for plans. The last fills a span up to its promise."""
LENGTH_UNIT = 10
"""Promised lengths count so many tokens each."""

_NUMBER = re.compile(r"(?<!\d)(\d{1,4})\s*$")


@dataclass(frozen=True, kw_only=True)
class PlanTokens:
    """Ids of the tags, and what can spell a promised length."""

    topic: int
    topic_end: int
    span: int
    span_end: int
    sync: int
    pad: int
    digits: Mapping[int, str] = field(hash=False)
    """Tokens of nothing but digits and spaces, and their texts."""

    @property
    def tags(self) -> tuple[int, ...]:
        """All of them."""
        return self.topic, self.topic_end, self.span, self.span_end, self.sync, self.pad


@dataclass(frozen=True, kw_only=True)
class Promise:
    """One part of the answer, as a plan announces it."""

    topic: tuple[int, ...]
    """Without the number and blanks before it."""
    length: int | None
    """In units of `LENGTH_UNIT` tokens, at least 1; None: the plan names no length."""


def promises(tokens: Sequence[int], tags: PlanTokens) -> list[Promise]:
    """What the plan after the last sync promises; empty if there is none.

    A topic that is not closed ends where another tag stands, or the tokens do; so a topic inside of
    a topic is the next one. A number is what the topic's last tokens spell: none, zero and one of
    more than four digits are no length.
    """
    found: list[Promise] = []
    topic: list[int] | None = None
    stops = (tags.topic, tags.topic_end, tags.span, tags.span_end, tags.sync)
    for token in (*tokens, tags.topic_end):
        if token in stops:
            if topic is not None:
                found.append(_promise(topic, tags))
            topic = [] if token == tags.topic else None
            if token == tags.sync:
                found = []
        elif topic is not None:
            topic.append(token)
    return found


def _promise(topic: Sequence[int], tags: PlanTokens) -> Promise:
    first = len(topic)
    while first and topic[first - 1] in tags.digits:
        first -= 1
    number = _NUMBER.search("".join(tags.digits[token] for token in topic[first:]))
    if number is None or not int(number[1]):
        return Promise(topic=tuple(topic), length=None)
    # The number's own tokens: the fewest at the end that spell all of it.
    spelt = ""
    first = len(topic)
    while _NUMBER.search(spelt) is None or int(spelt) != int(number[1]):
        first -= 1
        spelt = tags.digits[topic[first]] + spelt
    while first and tags.digits.get(topic[first - 1], "").isspace():
        first -= 1
    return Promise(topic=tuple(topic[:first]), length=int(number[1]))


def span_numbers(tokens: Sequence[int], tags: PlanTokens) -> list[int]:
    """For each token of a document the number of its span, from 0; -1 outside. Tags are part of
    their span.

    A span that is not closed ends before any other tag, so a span inside of a span is the next one.
    An end without a beginning is ordinary text, unless it is the document's first tag: then all
    before it is a span whose beginning was cut off.
    """
    numbers = [-1] * len(tokens)
    current, count, any_tag = -1, 0, False
    for place, token in enumerate(tokens):
        if token == tags.span:
            current, count = count, count + 1
        elif token == tags.span_end and not any_tag:
            current, count = count, count + 1
            numbers[:place] = [current] * place
        elif token in (tags.topic, tags.topic_end, tags.sync):
            current = -1
        numbers[place] = current
        if token == tags.span_end:
            current = -1
        any_tag |= token in (tags.topic, tags.topic_end, tags.span, tags.span_end, tags.sync)
    return numbers


def plan_visible(spans_BT: torch.Tensor, syncs_BT: torch.Tensor) -> torch.Tensor:
    """bool [B, T, T]: who sees whom by `span_numbers` and how many syncs there are up to a token
    (itself among them). Documents are the caller's to keep apart."""
    import torch

    spans_B1T = spans_BT[:, None, :]
    length = spans_BT.shape[1]
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=spans_BT.device).tril()
    text_BTT = (spans_B1T < 0) & causal_TT
    own_BTT = (spans_B1T >= 0) & (spans_BT[:, :, None] == spans_B1T)
    past_BTT = (spans_B1T >= 0) & (syncs_BT[:, None, :] < syncs_BT[:, :, None])
    return text_BTT | own_BTT | past_BTT
