"""Guides on planned texts: the answer is valid as a whole, whoever wrote which part of it."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from tests.methods.matrix_networks import TAGS, random, token, tokenizer
from tests.tiny import assert_no_page_is_lost

from anyorder.core.attention import Groups
from anyorder.core.errors import GuideError
from anyorder.core.request import Completion, Guide, Request
from anyorder.engine.engine import Engine
from anyorder.sampling import windows

END = 256
SCHEMA = '{"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "yy"]}}}'
WORDS = ("red", "green tea", "blue", "bluebell")


def is_json(text: str) -> bool:
    import json

    value = json.loads(text)
    jsonschema.validate(value, json.loads(SCHEMA))
    return True


GUIDES: list[tuple[Guide, Callable[[str], Any], int]] = [
    (Guide.regex(r"\d{3,9}-[a-f]+(é|\.)?"), re.compile(r"\d{3,9}-[a-f]+(é|\.)?").fullmatch, 16),
    (Guide.choices(WORDS), WORDS.__contains__, 9),
    (Guide.json_schema(SCHEMA), is_json, 40),
]
PLANS = {TAGS.topic: 9.0, TAGS.topic_end: 8.0, TAGS.sync: 8.0, TAGS.pad: 2.0}


def engine(*, ends: bool) -> Engine:
    model = random(0)
    own = dataclasses.replace(model.abilities, end_tokens=frozenset({END} if ends else ()))
    return Engine(dataclasses.replace(model, abilities=own), cache_tokens=4096)


def request(guide: Guide, length: int, **fields: Any) -> Request:
    return Request(
        **{
            "prompt": "say:",
            "method": "planned_diffusion",
            "guide": guide,
            "max_new_tokens": length,
            "temperature": 1.0,
            "logit_bias": PLANS,
            "options": {"default_length": 4, "plan_length": 8, "overhead": 60},
            **fields,
        }
    )


def run(engine: Engine, request: Request) -> tuple[Completion, int]:
    """The answer, and the most spans that one pass filled."""
    handle, most = engine.submit(request), 0
    while not handle.done:
        for running in engine._scheduler.running:
            for job in running.jobs:
                if isinstance(job.request.attention, Groups):
                    most = max(most, len(set(job.request.attention.ids)))
        engine.tick()
    return handle.result(), most


@pytest.mark.parametrize("ends", [True, False], ids=["ends", "no ends"])
@pytest.mark.parametrize(("guide", "check", "length"), GUIDES, ids=["regex", "choices", "json"])
def test_the_whole_answer_is_valid(
    guide: Guide, check: Callable[[str], Any], length: int, ends: bool
) -> None:
    one, planned, joint = engine(ends=ends), 0, 0
    for seed in range(12):
        commit = {"name": "threshold", "level": 0.0 if seed % 2 else 0.02}
        base = request(guide, length, seed=seed)
        own = dataclasses.replace(base, options={**base.options, "commit": commit})
        found, num_spans = run(one, own)
        assert check(found.text), found.text
        planned += num_spans > 0
        joint += num_spans > 1
    assert planned > 6 and joint > 2
    assert_no_page_is_lost(one)


def test_without_the_joint_check_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "anyorder.engine.run.compatible", lambda *args, **kwargs: list(range(len(args[3])))
    )
    assert windows.compatible is not None
    guide, check, length = GUIDES[0]
    commit = {"name": "threshold", "level": 0.0}
    texts = []
    for seed in range(8):
        base = request(guide, length, seed=seed)
        own = dataclasses.replace(base, options={**base.options, "commit": commit})
        try:
            texts.append(engine(ends=True).generate(own).text)
        except Exception:  # a text that nothing can follow any more
            texts.append("")
    assert not all(map(check, texts))


def test_plans_are_free_and_parts_of_no_text() -> None:
    """What a topic says is not guided; spans of padding alone add nothing."""
    guide = Guide.regex("(red|green)!")
    topic = {**PLANS, token("z"): 9.0}
    one = engine(ends=True)
    prompts = []
    for seed in range(6):
        wanted = request(guide, 8, seed=seed, logit_bias=topic)
        handle = one.submit(wanted)
        while not handle.done:
            prompts += [run.jobs[0].sequence.tokens[:] for run in one._scheduler.running]
            one.tick()
        assert re.fullmatch("(red|green)!", handle.result().text)
    assert any(token("z") in tokens for tokens in prompts)
    padded = request(guide, 8, logit_bias={**PLANS, TAGS.pad: 90.0}, prompt=[token("a"), *[
        TAGS.topic, token("b"), TAGS.topic_end]])  # fmt: skip
    found, num_spans = run(one, padded)
    assert num_spans and re.fullmatch("(red|green)!", found.text)


def test_alone_as_in_company_and_with_other_controls() -> None:
    requests = [
        request(guide, length + 4, seed=seed, **extra)
        for (guide, _, length), seed in itertools.product(GUIDES, (1, 2))
        for extra in ({}, {"guidance_scale": 1.5, "negative_prompt": "no"}, {"n": 2})
    ]
    alone = [engine(ends=True).generate(one) for one in requests]
    together = engine(ends=True)
    for got, want in zip(together.generate(requests), alone, strict=True):
        assert [c.tokens for c in got.choices] == [c.tokens for c in want.choices]
    assert_no_page_is_lost(together)
    guide = Guide.regex("[ab]+")
    for seed in range(4):
        found = engine(ends=True).generate(request(guide, 12, min_new_tokens=9, seed=seed))
        assert re.fullmatch("[ab]{9,12}", found.text)


def test_what_cannot_be_is_refused_before_it_runs() -> None:
    with pytest.raises(GuideError, match="shortest text that the regex allows has 9 tokens"):
        engine(ends=True).generate(request(Guide.regex("a{9}"), 8))
    with pytest.raises(GuideError, match="may nest without end"):
        engine(ends=True).generate(request(Guide.lark('start: "a" start | "b"'), 8))
    assert tokenizer() is not None
