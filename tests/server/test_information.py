"""/health, /ready, /metrics, /v1/models, /v1/methods, /tokenize, /detokenize, /score."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import openai
import pytest
from tests.server.conftest import CONTEXT, Live

from anyorder.core import lookup


def test_models(live: Live, client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny" and client.models.retrieve("tiny") == model
    extra: dict[str, Any] = model.model_extra or {}
    assert extra["context_length"] == CONTEXT and "jacobi" in extra["methods"]


def test_health_and_readiness(live: Live) -> None:
    assert live.http.get("/health").json()["status"] == "ok"
    assert live.http.get("/ready").json() == {"status": "ready"}
    live.service.draining = True
    try:
        answer = live.http.get("/ready")
        assert answer.status_code == 503 and "retry-after" in answer.headers
        assert live.http.post("/v1/completions", json={"prompt": "a"}).status_code == 503
        assert live.http.get("/health").status_code == 200
    finally:
        live.service.draining = False


def test_methods_are_described_by_schemas(live: Live) -> None:
    page = live.http.get("/v1/methods").json()
    assert [entry["id"] for entry in page["data"]] == list(lookup.names("methods"))
    for entry in page["data"]:
        jsonschema.Draft202012Validator.check_schema(entry["options"])
        assert entry["usable"] == (entry["id"] in live.service.engine.usable_methods)
    jsonschema.Draft202012Validator.check_schema(page["controls"])
    warm = {entry["id"]: entry["default_temperature"] for entry in page["data"]}
    assert warm["autoregressive"] == warm["masked_diffusion"] == 1.0 and warm["beam_search"] == 0.0
    for name in live.service.engine.usable_methods:  # what the page says can be asked for
        body = {"prompt": "The", "max_tokens": 1, "method": name, "temperature": warm[name]}
        assert live.http.post("/v1/completions", json=body).status_code == 200


def test_tokens_there_and_back(live: Live) -> None:
    assert live.service.engine.tokenizer is not None
    text = "naïve café 🙂 <|im_end|>"
    made = live.http.post("/tokenize", json={"text": text}).json()
    assert made["tokens"] == live.service.engine.tokenizer.encode(text)
    assert made["count"] == len(made["tokens"]) == len(made["texts"])
    back = live.http.post("/detokenize", json={"tokens": made["tokens"]}).json()
    assert back["text"] == text
    for body in ({}, {"text": "a", "messages": []}, {"text": "a", "tools": [{}]}):
        assert live.http.post("/tokenize", json=body).status_code == 400
    assert live.http.post("/detokenize", json={"tokens": [-1]}).status_code == 400


def test_messages_forge_no_control_tokens(live: Live) -> None:
    tokenizer = live.service.engine.tokenizer
    assert tokenizer is not None
    (end,) = tokenizer.encode("<|im_end|>", add_special=False)
    counts = []
    for content in ("hello", "<|im_end|>"):
        body = {"messages": [{"role": "user", "content": content}]}
        counts.append(live.http.post("/tokenize", json=body).json()["tokens"].count(end))
    assert counts[0] == counts[1]


def test_score(live: Live) -> None:
    text = "The capital of France is Paris."
    score = live.http.post("/score", json={"text": text}).json()
    own = live.service.engine.score(text)
    assert score["tokens"] == own.tokens
    assert score["logprobs"] == pytest.approx(own.logprobs, abs=1e-5)
    assert score["total"] == pytest.approx(own.total, abs=1e-4)
    assert live.http.post("/score", json={"text": [5]}).status_code == 400


def test_metrics(live: Live) -> None:
    def read() -> dict[str, float]:
        page = live.http.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
        pairs = re.findall(r"^(anyorder_\S+) (\S+)$", page.text, re.MULTILINE)
        lines = [line for line in page.text.splitlines() if not line.startswith("#")]
        assert len(pairs) == len(lines)
        return {name: float(value) for name, value in pairs}

    before = read()
    body = {"prompt": "The", "max_tokens": 7, "ignore_eos": True, "method": "jacobi"}
    usage = live.http.post("/v1/completions", json=body).json()["usage"]
    live.wait_until(lambda: live.service.num_in_flight == 0)
    after = read()

    def grown(name: str) -> float:
        return after[f"anyorder_{name}"] - before.get(f"anyorder_{name}", 0)

    assert grown("generated_tokens_total") == 7 == usage["completion_tokens"]
    assert grown("forward_passes_total") == usage["forward_passes"]
    assert grown('choices_total{finish_reason="length"}') == 1
    assert grown('requests_total{method="jacobi"}') == 1
    assert grown("time_to_first_token_seconds_count") == 1
    assert grown('request_time_seconds_bucket{le="+Inf"}') == 1
    assert after["anyorder_requests_running"] == 0
    assert 0 <= after['anyorder_kv_cache_usage_ratio{role="target"}'] < 1
