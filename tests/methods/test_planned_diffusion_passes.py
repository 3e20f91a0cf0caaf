"""Planned diffusion runs what training ran: against a reference without a cache, against masked
diffusion, and in any company."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import pytest
import torch
from tests.methods.test_contract import MASK, TAGS, contract_engine
from tests.methods.test_planned_diffusion import LETTERS_OF_TAGS, ids
from tests.tiny import VOCABULARY, assert_no_page_is_lost, tiny_engine, tiny_model

from anyorder.core.batch import KeyValuePool, PackedBatch, dense_batch
from anyorder.core.plans import plan_visible, span_numbers
from anyorder.core.request import Request
from anyorder.model.loaded import LoadedModel


def dense(tokens: list[int], network: Any) -> torch.Tensor:
    """Final hidden states of a whole document, seen as training shows it."""
    tokens_BT = torch.tensor([tokens])
    spans_BT = torch.tensor([span_numbers(tokens, TAGS)])
    visible_BTT = plan_visible(spans_BT, (tokens_BT == TAGS.sync).cumsum(1))
    return network.hidden(dense_batch(tokens_BT, visible_BTT))  # type: ignore[no-any-return]


def reference(network: Any, prompt: list[int], limit: int, bias: dict[int, float]) -> list[int]:
    """Greedy planned diffusion with all tags kept, without any cache: every pass runs all."""
    text = list(prompt)
    never = [TAGS.span, TAGS.span_end, TAGS.pad, MASK]
    no_tags = [TAGS.topic, TAGS.topic_end, TAGS.span, TAGS.span_end, TAGS.sync]
    shift = torch.zeros(VOCABULARY)
    for token, value in bias.items():
        shift[token] = value
    while len(text) < len(prompt) + limit:
        numbers = span_numbers(text, TAGS)
        last = max(place for place, number in enumerate(numbers) if number < 0)
        scores = network.logits(dense(text, network)[last][None])[0] + shift
        scores[never] = -math.inf
        token = int(scores.argmax())
        since = text[len(text) - text[::-1].index(TAGS.sync) :] if TAGS.sync in text else text
        topics = since.count(TAGS.topic)
        if token != TAGS.sync:
            text.append(token)
            continue
        start = len(text)
        text += [TAGS.span, *[MASK] * 4, TAGS.span_end] * topics
        while MASK in text[start:]:
            open_places = [p for p in range(start, len(text)) if text[p] == MASK]
            logits = network.logits(dense(text, network)[open_places])
            logits[:, MASK] = -math.inf
            scores = logits + shift
            scores[:, no_tags] = -math.inf
            tokens = scores.argmax(1)
            chances = logits.log_softmax(1).gather(1, tokens[:, None])[:, 0].exp()
            for span in range(topics):
                own = [i for i, p in enumerate(open_places) if (p - start) // 6 == span]
                sure = [i for i in own if chances[i] >= 0.3]
                for i in sure or sorted(own, key=lambda i: -chances[i])[:1]:
                    text[open_places[i]] = int(tokens[i])
        text.append(TAGS.sync)
    return text[len(prompt) :][:limit]


@functools.cache
def prompts() -> list[list[int]]:
    return [
        [*ids("ab<cd>e<f>"), 33 + n] + (ids("(gh_)|") if n % 2 else []) + [7 + n, 3]
        for n in range(12)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_cached_passes_are_those_of_training(seed: int) -> None:
    network = tiny_model(seed).network
    bias = {TAGS.sync: 6.0, TAGS.topic: 5.0, TAGS.topic_end: 4.0}
    abilities = dataclasses.replace(
        tiny_model(seed, ends=False).abilities,
        attention=frozenset({"causal", "bidirectional"}),
        mask_token=MASK,
        plan_tokens=dataclasses.replace(TAGS, digits={}),
    )
    engine = tiny_engine(model=LoadedModel(network=network, abilities=abilities))
    options = {
        "keep_tags": True,
        "default_length": 4,
        "commit": {"name": "threshold", "level": 0.3},
    }
    requests = [
        Request(
            prompt=prompt,
            method="planned_diffusion",
            max_new_tokens=60,
            logit_bias=bias,
            options=options,
        )
        for prompt in prompts()
    ]
    num_spans = 0
    for prompt, found in zip(prompts(), engine.generate(requests), strict=True):
        assert found.tokens == reference(network, prompt, 60, bias)
        num_spans += found.tokens.count(TAGS.span)
    assert num_spans > 8
    assert_no_page_is_lost(engine)


class OneWayPrompt:
    """A network whose first tokens are read from left to right, whatever is asked."""

    def __init__(self, network: Any, length: int) -> None:
        self.base, self.length = network, length
        self.cache_shapes, self.dtype, self.device = (
            network.cache_shapes,
            network.dtype,
            network.device,
        )
        self.logits, self.heads = network.logits, network.heads

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None) -> torch.Tensor:
        (group,) = batch.groups
        first = group.query_positions_RQ[0] < self.length
        if not first.any():  # they are cached
            return self.base.hidden(batch, pool)  # type: ignore[no-any-return]
        assert group.visible_RQK is not None and group.key_positions_RK is not None
        visible = group.visible_RQK.clone()
        earlier_RQK = group.key_positions_RK[:, None] <= group.query_positions_RQ[:, :, None]
        visible[:, first] = earlier_RQK[:, first, -visible.shape[2] :]
        changed = dataclasses.replace(group, visible_RQK=visible)
        hidden_NW = self.base.hidden(dataclasses.replace(batch, groups=(changed,)), pool)
        return hidden_NW  # type: ignore[no-any-return]


@pytest.mark.parametrize("extra", [{}, {"repetition_penalty": 1.5}, {"no_repeat_ngram": 2}])
@pytest.mark.parametrize("method", ["masked_diffusion", "block_diffusion"])
def test_one_span_is_other_methods_canvas(method: str, extra: dict[str, Any]) -> None:
    """And the block of block diffusion, which caches what was before it as plans do."""
    model = tiny_model(3, ends=False)
    length = 20
    size = length + 2  # with its tags; the prompt is a block of it too
    abilities = dataclasses.replace(
        model.abilities,
        attention=frozenset({"causal", "bidirectional"}),
        mask_token=MASK,
        plan_tokens=TAGS,
        block_size=size,
    )
    prompt = ids("abk" * 6 + "<d2>")
    assert len(prompt) == size
    for commit in (
        {"name": "confidence"},
        {"name": "threshold", "level": 0.2},
        {"name": "entropy"},
    ):
        planned = tiny_engine(model=dataclasses.replace(model, abilities=abilities)).generate(
            Request(
                prompt=prompt,
                method="planned_diffusion",
                max_new_tokens=size,
                options={"commit": commit, "keep_tags": True},
                logit_bias={TAGS.sync: 100.0},
                **extra,
            )
        )
        network: Any = OneWayPrompt(model.network, len(prompt))
        other = tiny_engine(model=LoadedModel(network=network, abilities=abilities)).generate(
            Request(
                prompt=prompt,
                method=method,
                canvas=[TAGS.span, *[None] * length, TAGS.span_end],
                options={"commit": commit},
                logit_bias={t: -math.inf for t in LETTERS_OF_TAGS if t != TAGS.pad},
                **extra,
            )
        )
        assert planned.tokens[0] == TAGS.span and len(set(planned.tokens)) > 3
        assert planned.tokens == other.tokens
        assert planned.logprobs == pytest.approx(other.logprobs)
        # The plan's own pass beside, in which the sync was drawn.
        steps = [entry.step - 1 for entry in planned.trace if entry.token not in LETTERS_OF_TAGS]
        assert steps == [e.step for e in other.trace if e.token not in LETTERS_OF_TAGS]


def test_guided_plans_do_not_depend_on_company() -> None:
    base = Request(
        prompt=ids("ab<cd1>"),
        method="planned_diffusion",
        max_new_tokens=30,
        guidance_scale=1.7,
        negative_prompt=[5, 6, 7],
        logit_bias={TAGS.sync: 6.0, TAGS.topic: 5.0, TAGS.topic_end: 4.0},
        options={"default_length": 5, "keep_tags": True},
    )
    requests = [
        dataclasses.replace(base, prompt=[*base.prompt, *range(1, n)])  # type: ignore[list-item]
        for n in range(1, 5)
    ]
    requests.append(dataclasses.replace(base, guidance_scale=1.0, negative_prompt=None))
    alone = [contract_engine(ends=False).generate(item).tokens for item in requests]
    engine = contract_engine(ends=False)
    handles = engine.submit_all(requests)
    for tick in itertools.count():
        if tick in (6, 13, 21, 40, 60):
            for running in list(engine._scheduler.running):
                engine._scheduler._preempt(running)
        if not engine.tick():
            break
    assert [handle.result().tokens for handle in handles] == alone
    assert alone[0] != alone[4] and all(TAGS.span in tokens for tokens in alone)
    assert_no_page_is_lost(engine)
