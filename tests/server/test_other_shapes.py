"""/v1/responses, /v1/messages, /v1/embeddings and /v1/canvas, through the SDKs that there are."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import jsonschema
import openai
import pytest
import torch
from tests.server.conftest import Live, running
from tests.server.test_chat import PARAMETERS, PLAIN

from anyorder.core.request import Request
from anyorder.model.loaded import LoadedModel

SYSTEM, QUESTION = (message["content"] for message in PLAIN)


@pytest.fixture(scope="module")
def claude(live: Live) -> Any:
    """Anthropic's own client."""
    with anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0) as made:
        yield made


# --------------------------------------------------------------------------------------- responses
def test_response_is_the_engines(live: Live, client: openai.OpenAI) -> None:
    call: dict[str, Any] = {"model": "tiny", "instructions": SYSTEM, "temperature": 0}
    call["max_output_tokens"] = 16
    own = live.service.engine.generate(PLAIN, max_new_tokens=16)
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    for given in (QUESTION, items):
        answer = client.responses.create(input=given, **call)
        assert answer.output_text == own.text and answer.object == "response"
        assert answer.status == "incomplete" and answer.incomplete_details is not None
        assert answer.usage is not None and answer.usage.output_tokens == len(own.tokens)
        assert (answer.usage.model_extra or {})["forward_passes"] == own.report.num_forward_passes


def test_response_streams_typed_events(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {"model": "tiny", "input": QUESTION, "max_output_tokens": 16}
    whole = client.responses.create(**call, extra_body={"seed": 2})
    events = list(client.responses.create(**call, stream=True, extra_body={"seed": 2}))
    final: Any = events[-1].response  # type: ignore[union-attr]
    assert final.output_text == whole.output_text
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(texts) == whole.output_text
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"
    numbers = [event.sequence_number for event in events]
    assert numbers == list(range(len(events)))


@pytest.mark.parametrize("stream", [False, True])
def test_response_calls_a_function(client: openai.OpenAI, stream: bool) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}]
    call: dict[str, Any] = {"model": "tiny", "input": QUESTION, "tools": tools}
    call |= {"tool_choice": "required", "max_output_tokens": 300}
    if stream:
        with client.responses.stream(**call) as opened:
            answer: Any = opened.until_done().get_final_response()
    else:
        answer = client.responses.create(**call)
    (item,) = answer.output
    assert item.type == "function_call" and item.name == "weather"
    jsonschema.validate(json.loads(item.arguments), PARAMETERS)
    result = {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
    said = item.model_dump(include={"type", "call_id", "name", "arguments"})
    items: Any = [{"role": "user", "content": QUESTION}, said, result]
    assert client.responses.create(model="tiny", input=items, max_output_tokens=2).output


def test_response_fits_a_schema_and_refuses_state(client: openai.OpenAI) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "maxItems": 1}
    wanted: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    answer = client.responses.create(
        model="tiny", input=QUESTION, text=wanted, max_output_tokens=250
    )
    jsonschema.validate(json.loads(answer.output_text), schema)
    for change in ({"store": True}, {"previous_response_id": "resp-1"}, {"background": True}):
        with pytest.raises(openai.BadRequestError, match=next(iter(change))):
            client.responses.create(model="tiny", input=QUESTION, **change)  # type: ignore[call-overload]


# ---------------------------------------------------------------------------------------- messages
def test_message_is_the_engines(live: Live, claude: anthropic.Anthropic) -> None:
    own = live.service.engine.generate(PLAIN, max_new_tokens=16)
    call: Any = {
        "model": "tiny",
        "system": SYSTEM,
        "max_tokens": 16,
        "extra_body": {"temperature": 0.0},
    }
    call["messages"] = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    answer = claude.messages.create(**call)
    assert answer.content[0].type == "text" and answer.content[0].text == own.text
    assert answer.stop_reason == "max_tokens" and answer.usage.output_tokens == len(own.tokens)
    counted = claude.messages.count_tokens(model="tiny", system=SYSTEM, messages=call["messages"])
    cached = answer.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == own.report.num_prompt_tokens
    assert counted.input_tokens == answer.usage.input_tokens + cached
    with claude.messages.stream(**call) as stream:
        assert "".join(stream.text_stream) == own.text
        assert stream.get_final_message().usage.output_tokens == len(own.tokens)


def test_message_stops_at_a_sequence(live: Live, claude: anthropic.Anthropic) -> None:
    own = live.service.engine.generate(PLAIN, max_new_tokens=16)
    stop = own.text[3:5]
    call: Any = {
        "model": "tiny",
        "system": SYSTEM,
        "max_tokens": 16,
        "extra_body": {"temperature": 0.0},
    }
    call |= {"messages": PLAIN[1:], "stop_sequences": ["never this", stop]}
    answer = claude.messages.create(**call)
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == stop
    assert answer.content[0].type == "text"
    assert answer.content[0].text == own.text[: own.text.index(stop)]
    with claude.messages.stream(**call) as stream:
        assert stream.get_final_message().stop_sequence == stop


@pytest.mark.parametrize("stream", [False, True])
def test_message_uses_a_tool(claude: anthropic.Anthropic, stream: bool) -> None:
    call: Any = {"model": "tiny", "max_tokens": 300, "messages": PLAIN[1:]}
    call["tools"] = [{"name": "weather", "description": "x", "input_schema": PARAMETERS}]
    call["tool_choice"] = {"type": "tool", "name": "weather"}
    if stream:
        with claude.messages.stream(**call) as opened:
            answer = opened.get_final_message()
    else:
        answer = claude.messages.create(**call)
    (block,) = answer.content
    assert answer.stop_reason == "tool_use" and block.type == "tool_use"
    jsonschema.validate(block.input, PARAMETERS)
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
    messages: Any = [
        *PLAIN[1:],
        {
            "role": "assistant",
            "content": [block.model_dump(include={"type", "id", "name", "input"})],
        },
        {"role": "user", "content": [result]},
    ]
    assert claude.messages.create(model="tiny", max_tokens=2, messages=messages).id


def test_message_errors(claude: anthropic.Anthropic) -> None:
    call: Any = {"model": "tiny", "max_tokens": 4, "messages": PLAIN[1:]}
    with pytest.raises(anthropic.BadRequestError, match="thinking") as caught:
        claude.messages.create(**call, thinking={"type": "enabled", "budget_tokens": 1024})
    body: Any = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(**{**call, "model": "other"})
    with pytest.raises(anthropic.BadRequestError, match="tool_choice"):
        claude.messages.create(**call, tool_choice={"type": "any"})


# -------------------------------------------------------------------------------------- embeddings
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_the_hidden_states(
    live: Live, client: openai.OpenAI, folder: Path, pooling: str
) -> None:
    """Against the network run by itself, without engine and cache."""
    from transformers import AutoModelForCausalLM

    tokenizer = live.service.engine.tokenizer
    assert tokenizer is not None
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = ["The capital of Italy is Rome.", "She said"]
    answer = client.embeddings.create(
        model="tiny", input=texts, extra_body={"pooling": pooling, "normalize": False}
    )
    scaled = client.embeddings.create(model="tiny", input=texts, extra_body={"pooling": pooling})
    for text, item, unit in zip(texts, answer.data, scaled.data, strict=True):
        with torch.no_grad():
            states = network.model(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0]
        expected = states.mean(0) if pooling == "mean" else states[-1]
        assert item.embedding == pytest.approx(expected.tolist(), abs=1e-3)
        assert unit.embedding == pytest.approx((expected / expected.norm()).tolist(), abs=1e-4)
        assert math.hypot(*unit.embedding) == pytest.approx(1, abs=1e-5)
    assert answer.usage.prompt_tokens == sum(len(tokenizer.encode(text)) for text in texts)


def test_embeddings_of_other_forms(client: openai.OpenAI) -> None:
    plain = client.embeddings.create(model="tiny", input="abc", encoding_format="float")
    packed = client.embeddings.create(model="tiny", input="abc", encoding_format="base64")
    assert isinstance(packed.data[0].embedding, str)
    default = client.embeddings.create(model="tiny", input=["abc"])  # the SDK unpacks base64
    assert default.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="tiny", input="abc", dimensions=3)
    for empty in ("", [], [""]):
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="tiny", input=empty)


# ------------------------------------------------------------------------------------------ canvas
def events_of(live: Live, body: dict[str, Any]) -> list[dict[str, Any]]:
    """A stream's events, without its end mark."""
    with live.http.stream("POST", "/v1/canvas", json=body) as stream:
        lines = [line[5:].strip() for line in stream.iter_lines() if line.startswith("data:")]
    assert lines[-1] == "[DONE]", lines
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("method", ["autoregressive", "jacobi"])
def test_canvas_tells_what_the_trace_tells(live: Live, method: str) -> None:
    # How much is guessed at a time may depend on how long passes take.
    options = {"adaptive": False} if method == "jacobi" else {}
    body = {"prompt": "The capital", "method": method, "max_tokens": 12, "temperature": 0}
    body |= {"method_options": options, "top_logprobs": 2, "commits": True}
    events = events_of(live, body)
    request = Request(
        prompt="The capital",
        method=method,
        options=options,
        max_new_tokens=12,
        logprobs=2,
        history=True,
    )
    own = live.service.engine.generate(request)
    reveals = [event for event in events if event["type"] == "reveal"]
    told = [(e["place"], e["token"], e["pass"], e["text"], e["drafted"]) for e in reveals]
    assert told == [
        (place, t.token, t.step, t.text, t.drafted) for place, t in enumerate(own.trace)
    ]
    chances = [event["probability"] for event in reveals]
    assert chances == pytest.approx([entry.probability for entry in own.trace], abs=1e-5)
    assert [len(event["alternatives"]) for event in reveals] == [2] * 12
    previews = [(e["pass"], e["place"], e["token"]) for e in events if e["type"] == "preview"]
    assert previews == [(p.step, p.place, p.token) for p in own.choices[0].history]
    commits = [event for event in events if event["type"] == "commit"]
    assert "".join(event["text"] for event in commits) == own.text
    assert commits[-1]["finish_reason"] == events[-1]["finish_reason"] == own.finish_reason
    done = events[-1]
    assert done["type"] == "done" and done["choices"][0]["text"] == own.text
    assert done["usage"]["forward_passes"] == own.report.num_forward_passes
    passes = [event["pass"] for event in events[:-1]]
    assert passes == sorted(passes)


@pytest.fixture(scope="module")
def filling(model: LoadedModel) -> Iterator[Live]:
    """A server whose model passes for one that fills places in any order."""
    assert model.tokenizer is not None
    (mask,) = model.tokenizer.encode("<|mask|>")
    able = dataclasses.replace(
        model.abilities, mask_token=mask, attention=frozenset({"causal", "bidirectional"})
    )
    with running(dataclasses.replace(model, abilities=able)) as server:
        yield server


def test_canvas_tells_of_drafts_and_revisions(filling: Live) -> None:
    body: dict[str, Any] = {
        "prompt": "The capital",
        "canvas": "<|mask:6|> is<|mask:3|>",
        "temperature": 0,
    }
    body |= {"method": "mask_predict"}
    events = events_of(filling, body)
    own = filling.service.engine.generate(
        Request(prompt="The capital", canvas=body["canvas"], method="mask_predict", history=True)
    )
    assert own.choices[0].history
    previews = [(e["pass"], e["place"], e["token"]) for e in events if e["type"] == "preview"]
    assert previews == [(p.step, p.place, p.token) for p in own.choices[0].history]
    fixed = [(e["place"], e["token"]) for e in events if e["type"] == "reveal" and not e["pass"]]
    assert fixed == [(p, t.token) for p, t in enumerate(own.trace) if t.step == 0] and fixed
    made = {e["place"]: e["token"] for e in events if e["type"] == "reveal"}
    assert [made[place] for place in range(len(own.tokens))] == own.tokens
    kinds = {event["type"] for event in events_of(filling, {**body, "history": False})}
    assert kinds == {"reveal", "done"}


def test_a_suffix_is_filled_in_before(filling: Live) -> None:
    """By a canvas, where the method has one; the text is the middle alone."""
    body = {"prompt": "The", "suffix": " of Italy", "max_tokens": 5, "temperature": 0}
    body |= {"method": "masked_diffusion", "logprobs": 0}
    answer = filling.http.post("/v1/completions", json=body).json()
    tokenizer = filling.service.engine.tokenizer
    assert tokenizer is not None
    end = tokenizer.encode(" of Italy", add_special=False)
    own = filling.service.engine.generate(
        Request(prompt="The", canvas=[*[None] * 5, *end], method="masked_diffusion")
    )
    assert own.tokens[5:] == end
    assert answer["choices"][0]["text"] == tokenizer.decode(own.tokens[:5])
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 5
    refused = filling.http.post("/v1/completions", json={**body, "stream": True})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "suffix"


def test_a_suffix_by_infilling_tokens(model: LoadedModel) -> None:
    """By the marks of a model that was trained with them."""
    marks = (300, 301, 302)
    able = dataclasses.replace(model.abilities, infill_tokens=marks)
    assert model.tokenizer is not None
    before, behind = (model.tokenizer.encode(text, add_special=False) for text in ("The", " is"))
    with running(dataclasses.replace(model, abilities=able)) as live:
        body = {"prompt": "The", "suffix": " is", "max_tokens": 8, "temperature": 0}
        answer = live.http.post("/v1/completions", json=body).json()
        ids = [marks[0], *before, marks[1], *behind, marks[2]]
        own = live.service.engine.generate(ids, max_new_tokens=8)
    assert answer["choices"][0]["text"] == own.text


def test_the_page(live: Live) -> None:
    page = live.http.get("/")
    assert (
        page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    )
    for name in ("style.css", "main.js"):
        assert f"playground/{name}" in page.text
        assert live.http.get(f"/playground/{name}").status_code == 200
    assert live.http.get("/playground/../app.py").status_code == 404
    assert live.http.get("/playground/%2e%2e/app.py").status_code == 404
