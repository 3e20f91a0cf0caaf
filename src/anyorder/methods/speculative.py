"""Speculative decoding: a drafter proposes tokens, the target checks all of them in one pass.

Leviathan et al., 2023 (arXiv:2211.17192); Chen et al., 2023 (arXiv:2302.01318); trees after
SpecInfer (arXiv:2305.09781) and EAGLE-2 (arXiv:2406.16858). `sampling/verify.py` has the acceptance
rules. With the default, `match`, the text is that of `autoregressive`, token for token, at any
temperature, whatever the drafter and its length. `ratio` preserves the distribution only; it
accepts more of what a drafter *draws* at a temperature above 0 (where nothing is drawn, both accept
alike, and `match` is what is done). `typical` changes the distribution.

A draft model, or a folder with a drafter's weights, that the engine was given decides the default
drafter; without one it is `prompt_lookup`.

Not here: the drafters, which are in `drafters/`, and prompt log-probabilities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Annotated, Literal

from anyorder.core import lookup
from anyorder.core.attention import CAUSAL, Tree
from anyorder.core.drafter import NO_DRAFT, Draft, Drafter, DraftSession
from anyorder.core.errors import RequestFailed
from anyorder.core.forward import (
    Check,
    Decoding,
    forward,
)
from anyorder.core.method import Abilities, Context, Method
from anyorder.core.options import Part, Range, build
from anyorder.sampling.draft_length import DraftLength


def _default_drafter() -> Drafter:
    drafter: Drafter = build(lookup.find("drafters", "prompt_lookup", kind="drafter"), {})
    return drafter


@dataclass(frozen=True, kw_only=True)
class Speculative(Method):
    """Propose several tokens cheaply, check them all in one pass."""

    drafter: Annotated[Drafter, Part("drafters"), "what proposes the tokens"] = field(
        default_factory=_default_drafter
    )
    length: Annotated[int, Range(1, 64), "most tokens proposed in a row"] = 16
    adaptive: Annotated[
        bool | None,
        "draft only as far as pays on this machine; none: where the text cannot depend on it",
    ] = None
    acceptance: Annotated[
        Literal["match", "ratio", "typical"],
        "match: same text as plain decoding; ratio: same distribution; typical: neither",
    ] = "match"
    typical_floor: Annotated[
        float, Range(0, 1), "typical: a probability above this is always accepted"
    ] = 0.09
    typical_share: Annotated[
        float, Range(0, 10), "typical: so is one above this times exp(-entropy)"
    ] = 0.3

    def missing(self, models: Mapping[str, Abilities]) -> str | None:
        return self.drafter.missing(models)

    @property
    def keeps_distribution(self) -> bool:
        return self.acceptance != "typical"

    @property
    def num_scratch_tokens(self) -> int:
        return self.drafter.num_scratch_tokens(self.length)

    def cached_elsewhere(
        self, num_tokens: int, models: Mapping[str, Abilities]
    ) -> Mapping[str, int]:
        return self.drafter.cached_elsewhere(num_tokens, self.length, models)

    def decode(self, context: Context) -> Decoding:
        text, top = list(context.prompt), context.request.logprobs
        wants = dataclasses.replace(self.drafter.wants(context.models), top=top)
        draws = self.drafter.draws and context.request.temperature > 0
        coupled = self.acceptance != "ratio"
        typical = self.acceptance == "typical" and context.request.temperature > 0
        fixed = typical or (draws and not coupled)  # the text depends on how much was proposed
        adapts = self.adaptive if self.adaptive is not None else not fixed
        lengths = DraftLength(self.length, self.drafter.chance) if adapts else None
        with (
            context.sequence() as sequence,
            closing(self.drafter.open(context, sequence=sequence, coupled=coupled)) as session,
        ):
            first = dataclasses.replace(wants, token=True, logprob=True)
            result = yield from forward(sequence, text, 0, outputs=first)
            context.emit(result.tokens, result.logprobs, alternatives=result.top)
            text += result.tokens
            while not context.finished:
                heads = result.heads[0] if result.heads else ()
                session.observe(text, features=result.features, heads=heads)
                room = context.max_new_tokens - (len(text) - len(context.prompt)) - 1
                limit = min(room, self._length(context, session, lengths))
                draft = (yield from session.propose(text, limit)) if limit > 0 else NO_DRAFT
                self._validate(draft, context)
                first_place = len(text) - len(context.prompt)
                proposed = _likeliest_path(draft)
                places = range(first_place, first_place + len(proposed))
                context.preview(places, proposed)

                if lengths is not None and draft.chances:
                    draft = _without(draft, self._worth(context, draft, limit, lengths))
                check = Check(
                    first=1,
                    rule=self.acceptance if coupled or draws else "match",
                    proposals=draft.proposals,
                    epsilon=self.typical_floor,
                    delta=self.typical_share,
                )
                result = yield from forward(
                    sequence,
                    [text[-1], *draft.tokens],
                    len(text) - 1,
                    attention=CAUSAL
                    if draft.parents is None
                    else Tree(parents=(-1, *(parent + 1 for parent in draft.parents))),
                    outputs=dataclasses.replace(wants, accepted=check),
                )
                verdict = result.verdict
                assert verdict is not None, "a checked draft has a verdict"
                if result.features is not None:
                    kept = result.features[[0, *verdict.accepted]]
                    result = dataclasses.replace(result, features=kept)
                num_accepted = len(verdict.accepted)
                context.emit(
                    verdict.tokens,
                    verdict.logprobs,
                    alternatives=verdict.top,
                    num_drafted=num_accepted,
                )
                text += verdict.tokens
                rejected = places[len(verdict.tokens) :]
                context.preview(rejected, [None] * len(rejected))
                if lengths is not None:
                    lengths.record(draft.grade, _depth(draft), num_accepted)
        if lengths is not None and lengths.complaint:
            context.note(lengths.complaint)

    def _length(self, context: Context, session: DraftSession, lengths: DraftLength | None) -> int:
        """How far to draft now."""
        grade = session.expects()
        if grade < 0:
            return 0
        if lengths is None:
            return self.length
        return lengths.choose(
            grade,
            plain=context.pass_seconds(1),
            check=lambda length: context.pass_seconds(
                1 + lengths.num_checked(self.drafter.num_tokens(length))
            ),
            draft=lambda length: self.drafter.seconds(context, length),
            others=context.num_others,
        )

    def _worth(self, context: Context, draft: Draft, limit: int, lengths: DraftLength) -> list[int]:
        return lengths.worth_checking(
            draft.chances,
            check=lambda count: context.pass_seconds(1 + count),
            drafting=self.drafter.seconds(context, limit),
            others=context.num_others,
        )

    def _validate(self, draft: Draft, context: Context) -> None:
        size = context.abilities.vocabulary_size
        for token in draft.tokens:
            if not 0 <= token < size:
                raise RequestFailed(
                    f"drafter {lookup.name_of(self.drafter)} proposed token {token}; "
                    f"{context.abilities.name} has ids 0 to {size - 1}."
                )


def _likeliest_path(draft: Draft) -> list[int]:
    """The tokens of a chain, or of a tree's first child of a first child and so on."""
    if draft.parents is None:
        return list(draft.tokens)
    path, node = [], -1
    for child, parent in enumerate(draft.parents):
        if parent == node:
            path.append(draft.tokens[child])
            node = child
    return path


def _without(draft: Draft, kept: list[int]) -> Draft:
    """Only these tokens of a draft, every one's parent among them."""
    assert draft.parents is not None and not draft.proposals, "chances are those of a chosen tree"
    places = {-1: -1} | {old: new for new, old in enumerate(kept)}
    return dataclasses.replace(
        draft,
        tokens=[draft.tokens[place] for place in kept],
        parents=[places[draft.parents[place]] for place in kept],
        chances=[draft.chances[place] for place in kept],
    )


def _depth(draft: Draft) -> int:
    """Tokens on the draft's longest path."""
    if draft.parents is None:
        return len(draft.tokens)
    return max(Tree(parents=tuple(draft.parents)).depths(len(draft.tokens)), default=-1) + 1
