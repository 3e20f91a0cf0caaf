"""OpenAI's client for JavaScript against a live server: `make javascript`.

Each test runs a function of javascript/calls.mjs in Node.js and compares what that client made of
the answer with the engine's own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.server.conftest import Live, running
from tests.server.test_chat import PARAMETERS, PLAIN, TOOLS

from anyorder.core import lookup
from anyorder.model.loaded import LoadedModel
from anyorder.server.errors import ApiError
from anyorder.server.service import Service

SCRIPTS = Path(__file__).resolve().parent / "javascript"
NODE = shutil.which("node")
pytestmark = [
    pytest.mark.javascript,
    pytest.mark.skipif(
        NODE is None or not (SCRIPTS / "node_modules").is_dir(),
        reason="no Node.js or no packages for it; `make javascript` installs both",
    ),
]
PROMPT = "The capital of France"
TEXT: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12}
CHAT: dict[str, Any] = {"model": "tiny", "messages": PLAIN, "max_completion_tokens": 12}
WEATHER: dict[str, Any] = {
    **CHAT,
    "max_completion_tokens": 400,
    "tools": TOOLS[:1],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "seed": 1,
}


def ask(live: Live, name: str, *, key: str = "none", retries: int = 0, **given: Any) -> Any:
    """What the function returned or how the client failed, and how often it sent something."""
    assert NODE is not None
    said = subprocess.run(
        [NODE, str(SCRIPTS / "calls.mjs"), name],
        input=json.dumps({"url": live.url, "key": key, "retries": retries, "given": given}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def value_of(live: Live, name: str, **given: Any) -> Any:
    """What a call returns that must not fail."""
    answer = ask(live, name, **given)
    assert "error" not in answer, answer
    return answer["value"]


def test_models(live: Live) -> None:
    found = value_of(live, "models")
    assert [model["id"] for model in found["listed"]] == ["tiny"]
    assert found["one"] == found["listed"][0]


# ------------------------------------------------------------------------------------- completions
def test_completions(live: Live) -> None:
    own = live.service.engine.generate(PROMPT, max_new_tokens=12)
    answer = value_of(live, "completion", **{**TEXT, "prompt": [PROMPT, "She"]}, temperature=0)
    assert answer["choices"][0]["text"] == own.text
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    quick = {"method": "jacobi", "method_options": {"size": 8}, "logprobs": 2}
    answer = value_of(live, "completion", **TEXT, temperature=0, **quick)
    assert answer["choices"][0]["text"] == own.text and answer["method"] == "jacobi"
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx(
        own.logprobs, abs=1e-4
    )
    assert answer["usage"]["forward_passes"] < len(own.tokens) + 8


def test_completions_stream(live: Live) -> None:
    call: dict[str, Any] = {**TEXT, "n": 2, "seed": 3}
    whole = value_of(live, "completion", **call)
    chunks = value_of(live, "completionStream", **call, stream_options={"include_usage": True})
    texts, ends = ["", ""], [None, None]
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert ends == [choice["finish_reason"] for choice in whole["choices"]]
    assert chunks[-1]["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "forward_passes"):
        assert chunks[-1]["usage"][name] == whole["usage"][name]


# -------------------------------------------------------------------------------------------- chat
def test_chat(live: Live) -> None:
    own = live.service.engine.generate(PLAIN, max_new_tokens=12)
    scores = {"logprobs": True, "top_logprobs": 2}
    answer = value_of(live, "chat", **CHAT, temperature=0, **scores)
    choice = answer["choices"][0]
    assert choice["message"]["content"] == own.text
    assert choice["finish_reason"] == own.finish_reason
    assert [entry["logprob"] for entry in choice["logprobs"]["content"]] == pytest.approx(
        own.logprobs, abs=1e-5
    )


def test_chat_streams(live: Live) -> None:
    own = live.service.engine.generate(PLAIN, max_new_tokens=12)
    chunks = value_of(live, "chatStream", **CHAT, temperature=0)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas) == own.text
    assert deltas[0]["role"] == "assistant" and len({chunk["id"] for chunk in chunks}) == 1
    end = {"stream_options": {"include_usage": True}}
    read = value_of(live, "chatGathered", **CHAT, temperature=0, **end)
    assert "".join(read["seen"]) == read["final"]["choices"][0]["message"]["content"] == own.text
    assert read["usage"]["completion_tokens"] == len(own.tokens)


def test_chat_fits_a_schema(live: Live) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    call = {**CHAT, "max_completion_tokens": 250, "response_format": wanted}
    answer = value_of(live, "chatParsed", **call)
    jsonschema.validate(json.loads(answer["choices"][0]["message"]["content"]), schema)


def test_chat_calls_tools(live: Live) -> None:
    whole = value_of(live, "chat", **WEATHER)["choices"][0]
    streamed = value_of(live, "chatGathered", **WEATHER)["final"]["choices"][0]
    for choice in (whole, streamed):
        (call,) = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls" and call["id"]
        jsonschema.validate(json.loads(call["function"]["arguments"]), PARAMETERS)
    named, again = (choice["message"]["tool_calls"][0]["function"] for choice in (whole, streamed))
    assert (named["name"], named["arguments"]) == (again["name"], again["arguments"])
    ran = value_of(live, "chatRunsTools", **WEATHER)
    assert ran["called"] == [json.loads(named["arguments"])]
    assert ran["messages"][-1]["role"] == "tool" and ran["messages"][-1]["content"] == "sunny"


# ---------------------------------------------------------------------------- the other interfaces
def test_responses(live: Live) -> None:
    own = live.service.engine.generate(PLAIN, max_new_tokens=16)
    system, question = (message["content"] for message in PLAIN)
    call: dict[str, Any] = {"model": "tiny", "instructions": system, "input": question}
    call |= {"temperature": 0, "max_output_tokens": 16}
    assert value_of(live, "response", **call)["output_text"] == own.text
    events = value_of(live, "responseStream", **call)
    pieces = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(pieces) == own.text and events[-1]["type"] == "response.incomplete"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    tools = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}]
    call |= {"tools": tools, "tool_choice": "required", "max_output_tokens": 300}
    (item,) = value_of(live, "responseGathered", **call)["output"]
    assert item["type"] == "function_call" and item["name"] == "weather"
    jsonschema.validate(json.loads(item["arguments"]), PARAMETERS)


def test_embeddings(live: Live) -> None:
    packed = value_of(live, "embeddings", model="tiny", input=["abc", "She said"])
    plain = value_of(live, "embeddings", model="tiny", input=["abc"], encoding_format="float")
    assert len(packed["data"]) == 2  # the client asks for base64 and unpacks it
    assert packed["data"][0]["embedding"] == pytest.approx(plain["data"][0]["embedding"], abs=1e-6)


def test_endpoints_of_our_own(live: Live) -> None:
    own = live.service.engine.generate(PROMPT, max_new_tokens=6, method="jacobi")
    got = value_of(live, "others", root=live.url, prompt=PROMPT)
    assert got["text"]["text"] == PROMPT and got["words"]["count"] == len(got["words"]["tokens"])
    assert got["score"]["logprobs"] == pytest.approx(
        live.service.engine.score(PROMPT).logprobs, abs=1e-5
    )
    assert [entry["name"] for entry in got["methods"]["data"]] == [*lookup.names("methods")]
    made = {e["place"]: e["token"] for e in got["canvas"] if e["type"] == "reveal"}
    assert [made[place] for place in range(6)] == own.tokens
    assert got["canvas"][-1]["choices"][0]["text"] == own.text
    assert got["health"]["status"] == "ok" and got["ready"]["status"] == "ready"
    assert "anyorder" in got["metrics"]


# ---------------------------------------------------------------------------------------- failures
@pytest.mark.parametrize(
    "name, given, kind, param",
    [
        ("completion", {**TEXT, "unheard": 1}, "BadRequestError", "unheard"),
        ("completion", {**TEXT, "temperature": -1}, "BadRequestError", "temperature"),
        ("completion", {**TEXT, "model": "other"}, "NotFoundError", "model"),
        ("chatStream", {**CHAT, "top_logprobs": 2}, "BadRequestError", "top_logprobs"),
        ("response", {"model": "tiny", "input": "Hi", "store": True}, "BadRequestError", "store"),
        ("embeddings", {"model": "tiny", "input": ""}, "BadRequestError", "input"),
    ],
)
def test_refusals(live: Live, name: str, given: dict[str, Any], kind: str, param: str) -> None:
    answer = ask(live, name, retries=2, **given)
    error = answer["error"]
    assert error["kind"] == kind and error["param"] == param and param in error["message"]
    assert error["requestID"].startswith("req-")
    assert answer["sent"] == 1  # a mistake is not worth another try


def test_keys(model: LoadedModel) -> None:
    with running(model, keys=["secret"]) as live:
        assert ask(live, "models", key="wrong")["error"]["kind"] == "AuthenticationError"
        assert ask(live, "models", key="secret")["value"]["listed"]


def test_a_failure_inside_a_stream(model: LoadedModel) -> None:
    call = {**TEXT, "max_tokens": 200, "ignore_eos": True}
    with running(model, {"max_seconds": 0.05}) as live:
        error = ask(live, "completionStream", **call)["error"]
        assert "longer than" in error["message"]
        answer = ask(live, "completion", retries=2, **call)
        assert answer["error"]["status"] == 408 and answer["sent"] == 1


def test_too_much_at_once_is_tried_again(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals: list[str] = []
    refuse = Service._overloaded

    def counted(service: Service, why: str) -> ApiError:
        refusals.append(why)
        return refuse(service, why)

    monkeypatch.setattr(Service, "_overloaded", counted)
    with running(model, {"max_in_flight": 1}) as live:
        answers: list[Any] = []
        trying = threading.Thread(
            target=lambda: answers.append(ask(live, "completion", retries=5, **TEXT))
        )
        service = live.service
        service._num_in_flight = 1  # as if somebody were at it for as long as this takes
        refused = ask(live, "completion", **TEXT)
        assert refused["error"]["kind"] == "RateLimitError" and refused["sent"] == 1
        trying.start()
        live.wait_until(lambda: len(refusals) == 2)
        service._num_in_flight = 0
        trying.join()
    assert answers[0]["value"]["choices"] and answers[0]["sent"] == 2


def test_whoever_leaves_frees_the_pages(live: Live) -> None:
    worker, store = live.service.worker, live.service.engine.roles["target"].store
    live.wait_until(lambda: not worker.is_busy)
    call = {**TEXT, "max_tokens": 800, "ignore_eos": True}
    assert value_of(live, "left", **call, after=2) == {"seen": 2}
    before = worker.num_ticks
    answer = ask(live, "aborted", **{**call, "n": 2}, milliseconds=100)
    assert answer["error"]["kind"] == "APIUserAbortError"
    live.wait_until(lambda: not worker.is_busy and store.num_available == store.num_pages)
    assert worker.num_ticks - before < 700
    assert live.service.num_in_flight == 0
