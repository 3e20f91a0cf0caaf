"""Requests refuse every bad value in one clear line; guides; completions as plain data."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from anyorder.core.errors import GuideError, InvalidRequest
from anyorder.core.options import describe
from anyorder.core.request import Choice, Completion, Guide, Report, Request, Score, TraceEntry

NUMBERS = [option for option in describe(Request) if option.kind in (int, float)]


def refusal(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        Request(**{"prompt": "x", **fields})
    message = str(caught.value)
    assert "\n" not in message and len(message) < 200 and message.endswith(".")
    return message


@pytest.mark.parametrize("option", NUMBERS, ids=lambda option: option.name)
def test_numbers_have_bounds(option: Any) -> None:
    assert option.bounds is not None
    low, high = option.bounds.minimum, option.bounds.maximum
    bad: list[object] = ["1", math.nan, [], True, option.kind(low - 1)]
    bad += [option.kind(high + 1)] if high < math.inf else []
    bad += [] if option.optional else [None]
    for value in bad:
        message = refusal(**{option.name: value})
        assert message == f"{option.name} must be {option.allowed}, got {value!r}."


@pytest.mark.parametrize(
    "prompt", ["", "text", [1, 2], (3,), [], [{"role": "user", "content": ""}]]
)
def test_prompts(prompt: Any) -> None:
    assert Request(prompt=prompt).prompt == prompt


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": None}, "prompt must be text, token ids or chat messages, got None."),
        ({"prompt": 5}, "prompt must be text, token ids or chat messages, got 5."),
        ({"prompt": b"ab"}, "prompt must be text, token ids or chat messages, got b'ab'."),
        ({"prompt": [1, "a"]}, "prompt must be text, token ids or chat messages, got [1, 'a']."),
        ({"prompt": [1.0]}, "prompt must be text, token ids or chat messages, got [1.0]."),
        ({"prompt": [True]}, "prompt must be text, token ids or chat messages, got [True]."),
        (
            {"negative_prompt": 5, "guidance_scale": 2.0},
            "negative_prompt must be text, token ids or chat messages, got 5.",
        ),
        ({"method": 3}, "method must be text, got 3."),
        ({"options": ["a=1"]}, "options must be a mapping, got ['a=1']."),
        (
            {"max_new_tokens": 0},
            "max_new_tokens is 0, so there is nothing to do; ask for at least 1, or for "
            "prompt_logprobs or an embedding.",
        ),
        (
            {"max_new_tokens": 3, "min_new_tokens": 4},
            "min_new_tokens is 4, more than max_new_tokens (3).",
        ),
        ({"stop": "end"}, "stop must be a list of non-empty texts, got 'end'."),
        ({"stop": ["a", ""]}, "stop must be a list of non-empty texts, got ['a', '']."),
        ({"stop": 7}, "stop must be a list of non-empty texts, got 7."),
        ({"stop": None}, "stop must be a list of non-empty texts, got None."),
        ({"bad_words": [3]}, "bad_words must be a list of non-empty texts, got [3]."),
        ({"stop_tokens": [1, "a"]}, "stop_tokens must be a list of ids, got [1, 'a']."),
        ({"stop_tokens": 2}, "stop_tokens must be a list of ids, got 2."),
        ({"logit_bias": [1]}, "logit_bias must be a mapping, got [1]."),
        ({"logit_bias": {"1": 2}}, "logit_bias maps token ids to numbers, got '1': 2."),
        ({"logit_bias": {1: "2"}}, "logit_bias maps token ids to numbers, got 1: '2'."),
        ({"logit_bias": {1: math.nan}}, "logit_bias maps token ids to numbers, got 1: nan."),
        ({"logit_bias": {True: 1.0}}, "logit_bias maps token ids to numbers, got True: 1.0."),
        (
            {"guide": "a+"},
            "guide must come from Guide.json_schema, regex, lark or choices, got 'a+'.",
        ),
        (
            {"guide": Guide.regex("a"), "ignore_end": True},
            "ignore_end and guide exclude each other: a guide ends the text.",
        ),
        (
            {"negative_prompt": "x"},
            "negative_prompt does nothing at guidance_scale 1; set a scale.",
        ),
        ({"ignore_end": 1}, "ignore_end must be true or false, got 1."),
        ({"cache_salt": 1}, "cache_salt must be text, got 1."),
    ],
)
def test_bad_values(fields: dict[str, Any], message: str) -> None:
    assert refusal(**fields) == message


def test_a_tensor_is_refused_in_one_short_line() -> None:
    assert refusal(prompt=torch.zeros(100, 100)).startswith("prompt must be text")


def test_what_is_allowed() -> None:
    Request(prompt="x", max_new_tokens=0, prompt_logprobs=True)
    Request(prompt="x", max_new_tokens=10**12, min_new_tokens=10**12)
    Request(
        prompt="x", logit_bias={3: -math.inf, 4: 1, 5: math.inf}, stop=("a",), stop_tokens=(1, 2)
    )
    Request(prompt="x", negative_prompt=[1, 2], guidance_scale=1.5)
    Request(prompt="x", guide=Guide.choices(["a", "b"]), temperature=0, top_p=1)


def test_a_request_can_be_varied_but_not_changed() -> None:
    request = Request(prompt="x", seed=1)
    assert dataclasses.replace(request, seed=2).seed == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.seed = 2  # type: ignore[misc]
    with pytest.raises(InvalidRequest):
        dataclasses.replace(request, temperature=-1.0)


# ------------------------------------------------------------------------------------------- guides
def test_guides() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert Guide.json_schema(schema) == Guide.json_schema(json.dumps(schema))
    assert json.loads(Guide.json_schema(schema).value) == schema
    assert Guide.regex("a+") == Guide(kind="regex", value="a+")
    assert Guide.lark("start: /a/") == Guide(kind="lark", value="start: /a/")
    assert Guide.choices(("yes", "no")) == Guide(kind="choices", value='["yes", "no"]')


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guide.json_schema("{"), "the JSON Schema is not valid JSON: Expecting property"),
        (lambda: Guide.json_schema("[" * 100_000), "the JSON Schema is not valid JSON: maximum"),
        (lambda: Guide.json_schema({"const": {1}}), "the JSON Schema is not valid JSON: Object of"),
        (lambda: Guide.json_schema("[1]"), r"a JSON Schema is an object, got \[1\]\."),
        (lambda: Guide.json_schema(5), r"a JSON Schema is an object, got 5\."),
        (lambda: Guide.regex(5), r"a regex guide is text, got 5\."),
        (lambda: Guide.lark(None), r"a lark guide is text, got None\."),
        (lambda: Guide.choices([]), r"choices must be one or more non-empty texts, got \[\]\."),
        (lambda: Guide.choices("abc"), "choices must be one or more non-empty texts, got 'abc'"),
        (lambda: Guide.choices(["a", ""]), "choices must be one or more non-empty texts"),
        (lambda: Guide.choices(["a", 1]), "choices must be one or more non-empty texts"),
        (lambda: Guide.choices(None), "choices must be one or more non-empty texts, got None"),
    ],
)
def test_malformed_guides(make: Any, message: str) -> None:
    with pytest.raises(GuideError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------- completions
REPORT = Report(
    num_prompt_tokens=2,
    num_new_tokens=3,
    num_forward_passes=2,
    tokens_per_pass=1.5,
    num_cached_tokens=0,
    queue_seconds=0.0,
    prefill_seconds=0.1,
    decode_seconds=0.2,
)


def choice(text: str) -> Choice:
    entry = TraceEntry(token=5, text=text, step=1, probability=0.5, alternatives=((5, 0.5),))
    return Choice(
        text=text, tokens=[5, 6], logprobs=[-1.0, -2.0], finish_reason="stop", trace=(entry,)
    )


def test_a_completion_speaks_for_its_first_choice() -> None:
    first, second = choice("a"), choice("b")
    completion = Completion(
        choices=(first, second), method="beam_search", report=REPORT, prompt_tokens=[1, 2]
    )
    for name in ("text", "tokens", "logprobs", "finish_reason", "trace"):
        assert getattr(completion, name) is getattr(first, name)


def test_a_completion_is_json() -> None:
    completion = Completion(
        choices=(choice("a"), choice("b")), method="m", report=REPORT, prompt_tokens=[1, 2]
    )
    data = json.loads(json.dumps(completion.to_dict()))
    assert data["text"] == "a" and data["tokens"] == [5, 6] and data["finish_reason"] == "stop"
    assert [c["text"] for c in data["choices"]] == ["a", "b"]
    assert data["method"] == "m" and data["prompt_tokens"] == [1, 2]
    report = {field.name: getattr(REPORT, field.name) for field in dataclasses.fields(Report)}
    assert data["report"] == {**report, "notes": []}
    assert data["trace"][0] == {"token": 5, "text": "a", "step": 1, "probability": 0.5,
                                "alternatives": [[5, 0.5]], "drafted": False}  # fmt: skip


def test_a_score_adds_up() -> None:
    score = Score(tokens=[1, 2, 3], logprobs=[-0.5, -1.25], report=REPORT)
    assert score.total == -1.75
