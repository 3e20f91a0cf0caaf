"""Refusals: one envelope, the right status, the field's name; and nothing is ignored."""

from __future__ import annotations

import logging
import time
from typing import Any

import httpx2
import openai
import pytest
from tests.server.conftest import Live

from anyorder.core import lookup

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "Hi"}
SAID = {"role": "user", "content": "Hi"}
PICTURE = {"type": "image", "source": {}}
UNGUIDED = {"type": "object", "not": {}}
"""A schema that no guide supports."""


def by(role: str, **block: Any) -> dict[str, Any]:
    """A body for /v1/messages."""
    return {"max_tokens": 2, "messages": [{"role": role, "content": [block]}]}


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    """A body for a chat that must call a function."""
    function = {"name": name, "parameters": parameters}
    return {**CHAT, "tools": [{"type": "function", "function": function}]}


def error_of(answer: httpx2.Response, status: int = 400) -> dict[str, Any]:
    """The error's fields, of an answer that must be one."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize(
    "path, body, param",
    [
        ("completions", {**TEXT, "unheard": 1}, "unheard"),
        ("completions", {**TEXT, "temperature": "1"}, "temperature"),
        ("completions", {**TEXT, "temperature": -1}, "temperature"),
        ("completions", {**TEXT, "temperature": True}, "temperature"),
        ("completions", {**TEXT, "top_p": 1.5}, "top_p"),
        ("completions", {**TEXT, "n": 0}, "n"),
        ("completions", {**TEXT, "n": 2**31}, "n"),
        ("completions", {**TEXT, "n": 1.5}, "n"),
        ("completions", {**TEXT, "seed": -1}, "seed"),
        ("completions", {**TEXT, "seed": 2**63}, "seed"),
        ("completions", {**TEXT, "max_tokens": -1}, "max_tokens"),
        ("completions", {**TEXT, "max_tokens": 0}, "max_tokens"),
        ("completions", {**TEXT, "max_tokens": 30000}, "max_tokens"),
        ("completions", {**TEXT, "max_tokens": 2**63}, "max_tokens"),
        ("completions", {**TEXT, "logprobs": 21}, "logprobs"),
        ("completions", {**TEXT, "best_of": 1, "n": 2}, "best_of"),
        ("completions", {**TEXT, "best_of": 2, "stream": True}, "best_of"),
        ("completions", {**TEXT, "stop": ["x"] * 17}, "stop"),
        ("completions", {**TEXT, "stop": "x" * 257}, "stop"),
        ("completions", {**TEXT, "stop": [""]}, "stop"),
        ("completions", {**TEXT, "logit_bias": {"x": 1}}, "logit_bias"),
        ("completions", {**TEXT, "logit_bias": {"100000": 1}}, "logit_bias"),
        ("completions", {**TEXT, "logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ("completions", {**TEXT, "suffix": "there"}, "suffix"),
        ("completions", {**TEXT, "stream_options": {}}, "stream_options"),
        ("completions", {**TEXT, "method": "beam_serch"}, "method"),
        ("completions", {**TEXT, "method": "mask_predict"}, "method"),
        ("completions", {**TEXT, "method": "jacobi", "method_options": {"x": 1}}, "method_options"),
        ("completions", {**TEXT, "method": "beam_search", "temperature": 1.0}, "temperature"),
        ("completions", {"model": "tiny"}, "prompt"),
        ("completions", {**TEXT, "prompt": []}, "prompt"),
        ("completions", {**TEXT, "prompt": [9**9]}, "prompt"),
        ("completions", {**TEXT, "prompt": [1, "a"]}, "prompt"),
        ("completions", {**TEXT, "prompt": ""}, "prompt"),
        ("chat/completions", {**CHAT, "functions": []}, "functions"),
        ("chat/completions", {**CHAT, "store": True}, "store"),
        ("chat/completions", {**CHAT, "top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {**CHAT, "messages": []}, "messages"),
        ("chat/completions", {**CHAT, "tool_choice": "required"}, "tool_choice"),
        ("chat/completions", {**CHAT, "max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ("chat/completions", {**CHAT, "response_format": {"type": "x"}}, "response_format.type"),
        ("chat/completions", {**CHAT, "response_format": {"type": "regex"}}, "response_format"),
        (
            "chat/completions",
            {**CHAT, "response_format": {"type": "regex", "regex": "(" * 9}},
            "response_format",
        ),
        (
            "chat/completions",
            {**CHAT, "response_format": {"type": "regex", "regex": "a" * 65537}},
            "response_format",
        ),
        ("completions", {**TEXT, "method": ""}, "method"),
        ("chat/completions", {**CHAT, "logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ("chat/completions", {**CHAT, "messages": [SAID] * 900}, "messages"),
        ("chat/completions", {**CHAT, "messages": [{"role": "user"}]}, "messages"),
        ("chat/completions", {**tool("x", UNGUIDED), "tool_choice": "required"}, "tools"),
        ("embeddings", {"input": "a" * 2000}, "input"),
        ("embeddings", {"input": [-1]}, "input"),
        ("responses", {"input": "Hi", "method": ""}, "method"),
        ("responses", {"input": "Hi", "max_output_tokens": 0}, "max_output_tokens"),
        ("responses", {"input": "Hi", "max_output_tokens": 40000}, "max_output_tokens"),
        ("responses", {"input": "Hi", "max_output_tokens": 1020}, "max_output_tokens"),
        ("responses", {"input": "a" * 2000}, "input"),
        ("responses", {"input": [{"role": "user"}]}, "input.0.content"),
        ("responses", {"input": [{**SAID, "output": "x"}]}, "input.0.output"),
        ("responses", {"input": [{"type": "function_call"}]}, "input.0.call_id"),
        ("responses", {"input": [{"type": "reasoning"}]}, "input.0.type"),
        ("responses", {"input": [SAID, 5]}, "input.1"),
        (
            "responses",
            {"input": "Hi", "text": {"format": {"type": "json_schema"}}},
            "text.format.schema",
        ),
        (
            "responses",
            {"input": "Hi", "text": {"format": {"type": "text", "name": "x"}}},
            "text.format.name",
        ),
        (
            "responses",
            {"input": "Hi", "text": {"format": {"type": "json_schema", "schema": UNGUIDED}}},
            "text",
        ),
        (
            "responses",
            {"input": "Hi", "tools": [{"type": "function", "name": "a b"}]},
            "tools.0.name",
        ),
        ("messages", by("user", **PICTURE), "messages.0.content.0.type"),
        ("messages", by("user", type="text"), "messages.0.content.0.text"),
        ("messages", by("user", type="text", text="x", input={}), "messages.0.content.0.input"),
        ("messages", by("user", type="tool_use", id="1", name="x", input={}), "messages"),
        ("messages", by("assistant", type="tool_result", tool_use_id="1"), "messages"),
        (
            "messages",
            {**by("user", type="text", text="x"), "stop_sequences": [""]},
            "stop_sequences",
        ),
        (
            "messages",
            {**by("user", type="text", text="x"), "tool_choice": {"type": "tool"}},
            "tool_choice.name",
        ),
        ("messages", {**by("user", type="text", text="x"), "system": [PICTURE]}, "system.0.type"),
        ("canvas", {**TEXT, "top_logprobs": -1}, "top_logprobs"),
        ("canvas", {**TEXT, "response_format": {"type": "regex", "regex": "("}}, "response_format"),
    ],
)
def test_bad_fields_are_named(live: Live, path: str, body: Any, param: str | None) -> None:
    error = error_of(live.http.post(f"/v1/{path}", json=body))
    assert error["param"] == param and error["type"] == "invalid_request_error"


def test_pictures_are_refused(live: Live) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
    body = {**CHAT, "messages": [{"role": "user", "content": [part]}]}
    assert (
        "messages.0.content" in error_of(live.http.post("/v1/chat/completions", json=body))["param"]
    )


def test_numbers_that_json_lacks(live: Live) -> None:
    headers = {"content-type": "application/json"}
    for text in ('{"prompt": "a", "temperature": NaN}', '{"prompt": "a", "top_p": 1e999}'):
        error_of(live.http.post("/v1/completions", content=text, headers=headers))
    error = error_of(live.http.post("/v1/completions", content="{", headers=headers))
    assert error["code"] == "invalid_json"
    error_of(live.http.post("/v1/completions", content="[" * 100_000, headers=headers))
    half = '{"prompt": "\\ud800"}'
    answer = live.http.post("/v1/completions", content=half, headers=headers)
    assert error_of(answer)["param"] == "prompt"
    for text in ("", "[]", "null"):
        error = error_of(live.http.post("/v1/completions", content=text, headers=headers))
        assert error["code"] == "invalid_json" and "JSON object" in error["message"]
    # What a page of another site may send without asking is no JSON.
    body = b'{"prompt": "a", "max_tokens": 1}'
    error_of(
        live.http.post("/v1/completions", content=body, headers={"content-type": "text/plain"})
    )


def test_a_million_wrong_items_are_one_complaint(live: Live) -> None:
    began = time.perf_counter()
    wrong = ["a", *[0] * 1_000_000]
    for field in ("prompt", "stop", "stop_token_ids", "bad_words", "canvas"):
        assert error_of(live.http.post("/v1/completions", json={**TEXT, field: wrong}))["param"]
    for change in ({"method": "a" * 10**6}, {"model": "a" * 10**6}, {"stop": ["", "a" * 200] * 8}):
        answer = live.http.post("/v1/completions", json={**TEXT, **change})
        assert len(error_of(answer, 404 if "model" in change else 400)["message"]) < 1100
    assert time.perf_counter() - began < 10


def test_extras_reach_every_form_of_a_chat(live: Live) -> None:
    """What goes beyond the protocols is understood by all of them, and none ignores it."""
    said = [{"role": "user", "content": "Where is Rome?"}]
    extras = {"method": "jacobi", "seed": 3, "stop_token_ids": [9], "min_tokens": 2, "top_k": 5}
    extras |= {"min_p": 0.01, "no_repeat_ngram": 3, "bad_words": ["x"], "cache_salt": "s"}
    chat = live.http.post(
        "/v1/chat/completions", json={"messages": said, "max_tokens": 9, **extras}
    )
    one = {"input": "Where is Rome?", "max_output_tokens": 9, "temperature": 1.0, **extras}
    two = {"messages": said, "max_tokens": 9, "temperature": 1.0, **extras}
    text = chat.json()["choices"][0]["message"]["content"]
    answer = live.http.post("/v1/responses", json=one).json()
    assert answer["output"][0]["content"][0]["text"] == text
    assert set(answer["usage"]["seconds"]) == {"queue", "prefill", "decode"}
    answer = live.http.post("/v1/messages", json=two).json()
    assert answer["content"][0]["text"] == text and answer["usage"]["exact"] is True


def test_other_statuses(live: Live) -> None:
    assert error_of(live.http.get("/v1/nothing"), 404)["type"] == "not_found_error"
    error_of(live.http.get("/v1/completions"), 405)
    body = {**TEXT, "model": "gpt-9"}
    assert error_of(live.http.post("/v1/completions", json=body), 404)["param"] == "model"
    error_of(live.http.get("/v1/models/a/b"), 404)


def test_the_clients_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="unknown or unsupported field 'prediction'"):
        client.chat.completions.create(**CHAT, prediction={"type": "content", "content": "x"})
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_failure_inside_says_nothing_of_it(
    live: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The request that makes the engine raise fails alone, and the server goes on."""
    cls = lookup.find("methods", "jacobi", kind="method")

    def decode(self: Any, context: Any) -> Any:
        with context.sequence():
            raise RuntimeError("secret detail")
            yield

    monkeypatch.setattr(cls, "decode", decode)
    free = live.num_free
    with caplog.at_level(logging.CRITICAL, "anyorder.server"):
        answer = live.http.post("/v1/completions", json={**TEXT, "method": "jacobi"})
        stream = live.http.post(
            "/v1/completions", json={**TEXT, "method": "jacobi", "stream": True}
        )
    assert "secret" not in error_of(answer, 500)["message"]
    assert stream.status_code == 200 and '"error"' in stream.text and "secret" not in stream.text
    assert "[DONE]" not in stream.text
    assert live.http.post("/v1/completions", json=TEXT).status_code == 200
    live.wait_until(lambda: live.num_free == free)


def test_a_failing_tick_ends_what_runs_and_no_more(
    live: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = live.service.engine._scheduler

    def select(shift: int | None = None) -> Any:
        monkeypatch.undo()
        raise RuntimeError("nobody's fault")

    monkeypatch.setattr(scheduler, "select", select)
    with caplog.at_level(logging.CRITICAL, "anyorder.server"):
        error_of(live.http.post("/v1/completions", json=TEXT), 500)
    assert live.http.post("/v1/completions", json=TEXT).status_code == 200
