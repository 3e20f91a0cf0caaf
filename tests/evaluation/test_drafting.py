"""Drafting: the counts are the reports', and good drafters are told from bad ones."""

from __future__ import annotations

import pytest
from tests.tiny import tiny_engine, tiny_model

from anyorder.core.errors import UserError
from anyorder.core.request import Request
from anyorder.evaluation.drafting import drafting

PROMPTS = [[5, 6, 7, 8] * 5, [9], [1, 2, 3]]
OPTIONS = {"drafter": "draft_model", "adaptive": False, "length": 4}


def test_one_prompt_is_its_report() -> None:
    engine = tiny_engine(model=tiny_model(ends=False), draft=tiny_model(1, ends=False))
    request = Request(prompt="", method="speculative", max_new_tokens=40, options=OPTIONS)
    found = drafting(engine, PROMPTS[:1], request)
    report = engine.generate(
        PROMPTS[0], method="speculative", max_new_tokens=40, options=OPTIONS
    ).report
    assert found.mean_accepted_length == report.mean_accepted_length
    assert found.tokens_per_pass == report.tokens_per_pass
    assert found.tokens_per_target_pass == 40 / report.passes_by_role["target"]


def test_a_perfect_drafter_and_a_stranger() -> None:
    request = Request(prompt="", method="speculative", max_new_tokens=40, options=OPTIONS)
    target = tiny_model(ends=False)
    told: list[int] = []
    perfect = drafting(
        tiny_engine(model=target, draft=target),
        PROMPTS,
        request,
        progress=lambda stage, done, total: told.append(done),
    )
    stranger = drafting(
        tiny_engine(model=target, draft=tiny_model(7, ends=False)), PROMPTS, request
    )
    assert perfect.num_new_tokens == stranger.num_new_tokens == 120 and told == [1, 2, 3]
    # The first token is the prompt's; then 5 at a time, of which the last check may hold fewer.
    assert perfect.mean_accepted_length is not None and perfect.mean_accepted_length > 4.5
    assert stranger.mean_accepted_length is not None and stranger.mean_accepted_length < 2
    together = drafting(tiny_engine(model=target, draft=target), PROMPTS, request, in_flight=3)
    assert together.mean_accepted_length == perfect.mean_accepted_length


def test_without_drafts() -> None:
    found = drafting(tiny_engine(), PROMPTS, Request(prompt="", max_new_tokens=9, ignore_end=True))
    assert found.mean_accepted_length is None
    assert found.tokens_per_pass == found.tokens_per_target_pass == 1
    with pytest.raises(UserError, match="no prompt"):
        drafting(tiny_engine(), [], Request(prompt=""))
