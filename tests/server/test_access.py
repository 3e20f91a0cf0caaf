"""Keys, hosts, origins, sizes and queues."""

from __future__ import annotations

import hmac
import threading
from typing import Any

import httpx2
import openai
import pytest
from starlette.routing import Route
from tests.server.conftest import Live, running

from anyorder.model.loaded import LoadedModel
from anyorder.server import app as application

BODY: dict[str, Any] = {"model": "tiny", "prompt": "The capital of France", "max_tokens": 40}


def test_every_route_but_health_needs_a_key(model: LoadedModel) -> None:
    with running(model, keys=["right", "other"]) as live:
        paths = {
            r.path for router in application.ROUTERS for r in router.routes if isinstance(r, Route)
        }
        assert len(paths) >= 10
        for path in (*paths, "/openapi.json", "/nothing"):
            for method in ("GET", "POST"):
                answer = live.http.request(method, path, json={})
                if path == "/health":
                    assert answer.status_code != 401
                    continue
                assert answer.status_code == 401, path
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert "www-authenticate" in answer.headers
        for headers in (
            {"authorization": "Bearer wrong"},
            {"x-api-key": ""},
            {"authorization": "right"},
        ):
            assert live.http.get("/v1/models", headers=headers).status_code == 401
        for headers in ({"authorization": "Bearer right"}, {"x-api-key": "other"}):
            assert live.http.get("/v1/models", headers=headers).status_code == 200
        with pytest.raises(openai.AuthenticationError), live.client("wrong") as client:
            client.models.list()


def test_keys_need_not_be_ascii(model: LoadedModel) -> None:
    with running(model, keys=["schlüssel"]) as live:
        for key, status in (("schlüssel", 200), ("schluessel", 401)):
            headers = {b"x-api-key": key.encode()}
            assert live.http.get("/v1/models", headers=headers).status_code == status


def test_all_keys_are_compared_every_time(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Any] = []
    real = hmac.compare_digest

    def compare(a: Any, b: Any) -> bool:
        compared.append(b)
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    with running(model, keys=["a", "b", "c"]) as live:
        for key in ("a", "c", "none of them"):
            compared.clear()
            live.http.get("/ready", headers={"authorization": f"Bearer {key}"})
            assert len(compared) == 3 and {len(digest) for digest in compared} == {32}


def test_keys_share_no_prefixes(model: LoadedModel) -> None:
    body = {**BODY, "prompt": list(range(20, 120)), "max_tokens": 2}

    def cached(live: Live, key: str, **more: Any) -> int:
        headers = {"authorization": f"Bearer {key}"}
        answer = live.http.post("/v1/completions", json={**body, **more}, headers=headers)
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    with running(model, keys=["a", "b"]) as live:
        assert cached(live, "a") == 0 < cached(live, "a")
        assert cached(live, "b") == 0 < cached(live, "b")
        assert cached(live, "b", cache_salt="own") == 0 < cached(live, "b", cache_salt="own")


def test_other_names_and_sites(model: LoadedModel) -> None:
    question = {"origin": "https://a.example", "access-control-request-method": "POST"}
    with running(model, hosts=("127.0.0.1", "localhost")) as live:
        assert live.http.get("/ready").status_code == 200
        assert live.http.get("/ready", headers={"host": "localhost:1"}).status_code == 200
        answer = live.http.get("/ready", headers={"host": "evil.example"})
        assert answer.status_code == 403 and answer.json()["error"]["type"] == "permission_error"
        answer = live.http.options("/v1/completions", headers=question)
        assert "access-control-allow-origin" not in answer.headers
        answer = live.http.get("/ready", headers=question)
        assert "access-control-allow-origin" not in answer.headers
    with running(model, origins=["https://a.example"], keys=["k"]) as live:
        answer = live.http.options("/v1/completions", headers=question)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        other = {**question, "origin": "https://b.example"}
        answer = live.http.options("/v1/completions", headers=other)
        assert "access-control-allow-origin" not in answer.headers
        assert "access-control-allow-credentials" not in answer.headers


def test_bodies_have_a_limit(model: LoadedModel) -> None:
    with running(model, {"max_body_bytes": 1000}) as live:
        large = b'{"prompt": "' + b"a" * 1000 + b'"}'
        headers = {"content-type": "application/json"}
        parts = (large[i : i + 100] for i in range(0, len(large), 100))  # sent without a length
        for content in (large, parts):
            answer = live.http.post("/v1/completions", content=content, headers=headers)
            assert answer.status_code == 413, answer.text
            assert answer.json()["error"]["type"] == "request_too_large"
        assert live.http.post("/v1/completions", json=BODY).status_code == 200


def test_limits_are_named(model: LoadedModel) -> None:
    limits = {"max_prompt_tokens": 3, "max_tokens": 10, "max_choices": 2, "max_prompts": 2}
    with running(model, limits) as live:
        for change, name in (
            ({"max_tokens": 5}, "prompt"),
            ({"prompt": [5]}, "max_tokens"),
            ({"prompt": [5], "max_tokens": 5, "n": 3}, "n"),
            ({"prompt": [[5]] * 3, "max_tokens": 5}, "prompt"),
        ):
            answer = live.http.post("/v1/completions", json={**BODY, **change})
            assert answer.status_code == 400 and answer.json()["error"]["param"] == name
            assert "this server" in answer.json()["error"]["message"]


def test_too_much_at_once(model: LoadedModel) -> None:
    with running(model, {"max_in_flight": 3}) as live:
        for change in ({"n": 4}, {"prompt": ["a", "b"], "n": 2}, {"best_of": 4}):
            answer = live.http.post("/v1/completions", json={**BODY, **change})
            assert answer.status_code == 400, "trying again would not help"
            assert answer.json()["error"]["param"] in ("n", "best_of")
        long = {**BODY, "n": 3, "max_tokens": 60, "ignore_eos": True}
        with live.http.stream("POST", "/v1/completions", json={**long, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            answer = live.http.post("/v1/completions", json=BODY)
            assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["type"] == "rate_limit_error"
            for _ in lines:
                pass
        live.wait_until(lambda: live.service.num_in_flight == 0)
        assert live.http.post("/v1/completions", json=BODY).status_code == 200


def test_the_client_tries_again(model: LoadedModel) -> None:
    with running(model, {"max_in_flight": 1}) as live, live.client(max_retries=5) as client:
        held = threading.Event()

        def hold() -> None:
            body = {**BODY, "max_tokens": 60, "ignore_eos": True, "stream": True}
            with live.http.stream("POST", "/v1/completions", json=body) as stream:
                for number, _ in enumerate(stream.iter_lines()):
                    if number == 1:
                        held.set()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        assert client.completions.create(**BODY).choices
        thread.join()


def test_queued_tokens(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(model, {"max_queued_tokens": 50}) as live:
        body = {**BODY, "prompt": [7] * 40, "max_tokens": 2}
        scheduler = live.service.engine._scheduler
        monkeypatch.setattr(scheduler, "_max_running", 0)  # nobody is admitted
        answers: list[httpx2.Response] = []

        def ask() -> None:
            answers.append(live.http.post("/v1/completions", json=body))

        thread = threading.Thread(target=ask)
        thread.start()
        live.wait_until(lambda: len(live.service.worker.tickets) == 1)
        answer = live.http.post("/v1/completions", json=body)
        assert answer.status_code == 429 and "retry-after" in answer.headers
        monkeypatch.undo()
        thread.join()
        assert answers[0].status_code == 200


def test_time_is_limited(model: LoadedModel) -> None:
    body = {**BODY, "max_tokens": 200, "ignore_eos": True}
    with running(model, {"max_seconds": 0.05}) as live:
        answer = live.http.post("/v1/completions", json=body)
        assert answer.status_code == 408 and answer.json()["error"]["type"] == "timeout_error"
        assert answer.headers["x-should-retry"] == "false"
        with pytest.raises(openai.APIError, match="longer than"), live.client() as client:
            for _ in client.completions.create(**BODY, stream=True, extra_body={"min_tokens": 40}):
                pass
        live.wait_until(
            lambda: live.num_free == live.service.engine.roles["target"].store.num_pages
        )
        assert live.service.num_in_flight == 0
