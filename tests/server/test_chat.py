"""/v1/chat/completions through OpenAI's client."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest
from tests.server.conftest import Live

from anyorder.core.request import Request
from anyorder.server.tool_calls import CallReader

MESSAGES: Any = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Where is "}, {"type": "text", "text": "Rome?"}],
    },
]
PLAIN = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Rome?"}]
CALL: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_completion_tokens": 12}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "time"}},
]


def test_answer_is_the_engines(live: Live, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**CALL, temperature=0)
    own = live.service.engine.generate(PLAIN, max_new_tokens=12)
    choice = answer.choices[0]
    assert choice.message.content == own.text and choice.message.role == "assistant"
    assert choice.finish_reason == own.finish_reason
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == own.report.num_prompt_tokens


def test_stream_adds_up(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {**CALL, "seed": 4, "n": 2, "logprobs": True, "top_logprobs": 2}
    # Heads of 8 run on torch, whose rounding tells a cached prompt from a new one.
    client.chat.completions.create(**call)
    whole = client.chat.completions.create(**call)
    texts, ends, scores = ["", ""], [None, None], [[], []]
    roles: list[list[Any]] = [[], []]
    chunks = list(
        client.chat.completions.create(**call, stream=True, stream_options={"include_usage": True})
    )
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        assert chunk.usage is None and chunk.id == chunks[0].id
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index].append(choice.delta.role)
        ends[choice.index] = choice.finish_reason or ends[choice.index]
        if choice.logprobs is not None:
            scores[choice.index] += choice.logprobs.content or []
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert [role[0] for role in roles] == ["assistant"] * 2 and not any(roles[0][1:])
    assert scores == [c.logprobs.content for c in whole.choices if c.logprobs is not None]
    costs, others = (used.to_dict() for used in (chunks[-1].usage, whole.usage) if used)
    seconds = costs.pop("seconds"), others.pop("seconds")
    assert chunks[-1].choices == [] and costs == others
    assert all(set(told) == {"queue", "prefill", "decode"} for told in seconds)  # type: ignore[call-overload]


def test_logprobs(live: Live, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**CALL, temperature=0, logprobs=True, top_logprobs=3)
    request = Request(prompt=PLAIN, max_new_tokens=12, logprobs=3)
    own = live.service.engine.generate(request)
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert [entry.logprob for entry in content] == pytest.approx(own.logprobs, abs=1e-5)
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token and entry.bytes is not None
    assert b"".join(bytes(e.bytes or []) for e in content).decode("utf-8", "replace") == own.text


def test_json_schema(client: openai.OpenAI) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(2):
        answer = client.chat.completions.create(
            **{**CALL, "max_completion_tokens": 250}, seed=seed, response_format=wanted
        )
        jsonschema.validate(json.loads(answer.choices[0].message.content or ""), schema)


def test_other_guides(live: Live, client: openai.OpenAI) -> None:
    formats: list[Any] = [
        {"type": "regex", "regex": "[ab]{4}"},
        {"type": "choices", "choices": ["abab", "baba"]},
        {"type": "lark", "lark": 'start: "ab" "ab" | "baba"'},
    ]
    for wanted in formats:
        answer = client.chat.completions.create(**CALL, response_format=wanted)
        text = answer.choices[0].message.content or ""
        assert len(text) == 4 and set(text) <= {"a", "b"}
    answer = client.chat.completions.create(
        **{**CALL, "max_completion_tokens": 60},
        temperature=0,
        response_format={"type": "json_object"},
    )
    assert (answer.choices[0].message.content or "").startswith("{")


# ------------------------------------------------------------------------------------------- tools
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", [{"type": "function", "function": {"name": "weather"}}, "required"]
)
def test_forced_calls_fit_their_schema(client: openai.OpenAI, stream: bool, choice: Any) -> None:
    call = {**CALL, "max_completion_tokens": 400, "tools": TOOLS[:1], "tool_choice": choice}
    call |= {"seed": 1}
    if stream:
        chunks = [c.choices[0] for c in client.chat.completions.create(**call, stream=True)]
        (made,) = [c for chunk in chunks for c in chunk.delta.tool_calls or []]
        assert not any(chunk.delta.content for chunk in chunks) and made.index == 0
        reason = chunks[-1].finish_reason
    else:
        answer = client.chat.completions.create(**call).choices[0]
        (made,) = answer.message.tool_calls or []
        assert answer.message.content is None
        reason = answer.finish_reason
    assert reason == "tool_calls" and made.function is not None and made.id
    assert made.function.name == "weather"
    jsonschema.validate(json.loads(made.function.arguments or ""), PARAMETERS)


def test_calls_stream_with_logprobs(client: openai.OpenAI) -> None:
    """Every token's, those of the call included, as without a stream."""
    call: dict[str, Any] = {**CALL, "max_completion_tokens": 400, "tools": TOOLS[:1], "seed": 1}
    call |= {"logprobs": True, "top_logprobs": 2}
    for choice in ("required", "auto"):
        call["tool_choice"] = choice
        whole = client.chat.completions.create(**call).choices[0]
        chunks = [c.choices[0] for c in client.chat.completions.create(**call, stream=True)]
        scores = [p for c in chunks if c.logprobs for p in c.logprobs.content or []]
        right = whole.logprobs.content if whole.logprobs is not None else None
        assert right and [p.token for p in scores] == [p.token for p in right]
        assert [p.logprob for p in scores] == pytest.approx([p.logprob for p in right], abs=1e-4)
        text = "".join(chunk.delta.content or "" for chunk in chunks)
        assert text == (whole.message.content or "")
        made = [c.function for chunk in chunks for c in chunk.delta.tool_calls or []]
        expected = [c.function for c in whole.message.tool_calls or []]  # type: ignore[union-attr]
        assert [f and (f.name, f.arguments) for f in made] == [
            (f.name, f.arguments) for f in expected
        ]
        assert bool(made) == (choice == "required")


def test_tools_and_their_answers_reach_the_template(live: Live, client: openai.OpenAI) -> None:
    call = {"id": "call-1", "type": "function"}
    call |= {"function": {"name": "weather", "arguments": '{"city": "Rome"}'}}  # type: ignore[dict-item]
    messages = [
        *PLAIN,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call-1", "content": "sunny"},
    ]
    body = {"messages": messages, "tools": TOOLS}
    text = live.http.post("/tokenize", json=body).json()
    shown = live.http.post("/detokenize", json={"tokens": text["tokens"]}).json()["text"]
    assert '"city": "Rome"' in shown and "sunny" in shown and '"name": "time"' in shown
    answer = client.chat.completions.create(
        model="tiny",
        messages=messages,
        tools=TOOLS,
        max_tokens=8,
        temperature=0,  # type: ignore[arg-type]
    )
    assert answer.usage is not None and answer.usage.prompt_tokens == text["count"]


WRITTEN = (
    'Sure. <tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
    '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
)


@pytest.mark.parametrize(
    "text, content, names",
    [
        (WRITTEN, "Sure. ", ["time", "weather"]),
        ('{"name": "weather", "parameters": {"city": "Paris"}}', "", ["weather"]),
        ('{"name": "unknown", "arguments": {}}', '{"name": "unknown", "arguments": {}}', []),
        ("<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", []),
        ("1 < 2 <tool", "1 < 2 <tool", []),
        ("{", "{", []),
    ],
)
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_calls_are_told_from_content(text: str, content: str, names: list[str], size: int) -> None:
    reader = CallReader(["time", "weather"], several=True)
    shown = "".join(reader.push(text[i : i + size]) for i in range(0, len(text), size))
    rest, calls = reader.finish()
    assert shown + rest == content and [call.name for call in calls] == names


def test_one_call_if_they_are_not_parallel() -> None:
    reader = CallReader(["time", "weather"], several=False)
    reader.push(WRITTEN)
    assert [call.name for call in reader.finish()[1]] == ["time"]
