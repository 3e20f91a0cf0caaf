"""`anyorder serve` as its own process: starting, draining, refusing to start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from benchmarks.load import stall
from benchmarks.servers import ServerProcess, anyorder_server, free_port

from anyorder.cli.main import main

PROGRAM = [sys.executable, "-m", "anyorder.cli.main", "serve"]


@pytest.fixture
def process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its address."""
    flags = ["--port", "0", "--drain-seconds", "20", "--served-name", "tiny"]
    made = subprocess.Popen([*PROGRAM, str(folder), *flags], stderr=subprocess.PIPE, text=True)
    assert made.stderr is not None
    line = made.stderr.readline()
    while "answers at" not in line:
        assert line, "the server ended"
        line = made.stderr.readline()
    found = re.search(r"http://\S+(?=/v1)", line)
    assert found is not None
    yield made, found[0]
    made.kill()
    made.wait()
    made.stderr.close()


def test_running_streams_finish(process: tuple[subprocess.Popen[str], str]) -> None:
    made, url = process
    body = {"prompt": "The", "max_tokens": 250, "ignore_eos": True, "stream": True}
    with httpx2.Client(base_url=url, timeout=60) as http:
        assert http.get("/v1/models").json()["data"][0]["id"] == "tiny"
        with http.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            os.kill(made.pid, signal.SIGTERM)
            refused: list[object] = []

            def knock() -> None:
                while not refused:
                    try:
                        with httpx2.Client(base_url=url, timeout=5) as other:
                            answer = other.post("/v1/completions", json=body)
                            refused.extend([answer.status_code] * (answer.status_code == 503))
                    except httpx2.TransportError as error:
                        refused.append(error)

            thread = threading.Thread(target=knock)
            thread.start()
            rest = [line for line in lines if line.startswith("data:")]
            thread.join()
    assert first.startswith("data:") and rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2][5:])["choices"][0]["finish_reason"] == "length"
    assert refused, "new work was accepted"
    assert made.wait(timeout=20) == 0


def test_what_does_not_finish_in_time_is_cut(folder: Path) -> None:
    """Long answers and a client that never reads keep the process no longer than it was told."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1/completions"
    long = {"prompt": "On", "max_tokens": 900, "ignore_eos": True, "n": 16}
    with ServerProcess(anyorder_server(str(folder), port, "--drain-seconds", "1"), port) as server:
        stalled = stall(port, {**long, "logprobs": 20})
        whole: list[httpx2.Response] = []

        def ask() -> None:
            whole.append(httpx2.post(url, json={**long, "n": 8}, timeout=60))

        thread = threading.Thread(target=ask)
        thread.start()
        with httpx2.stream("POST", url, json={**long, "stream": True}, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            began = time.perf_counter()
            os.kill(server.process.pid, signal.SIGTERM)
            seen = [line[5:].strip() for line in lines if line.startswith("data:")]
        assert server.process.wait(timeout=30) == 0
        assert time.perf_counter() - began < 20
        thread.join()
        stalled.close()
    assert "[DONE]" not in seen, "a client must see that its answer was cut"
    for error in (json.loads(seen[-1])["error"], whole[0].json()["error"]):
        assert error["message"] == "the server is shutting down."
    assert whole[0].status_code == 503 and whole[0].headers["retry-after"] == "1"


def test_mistakes_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("\n")
    for flags, message in (
        (["--port", "x"], "--port must be an integer"),
        (["--max-choices", "0"], "max_choices must be an integer from 1 to 1024"),
        (["--api-key", ""], "--api-key is empty"),
        (["--api-key-file", str(tmp_path / "keys")], "holds no key"),
        (["--method", "beam"], "unknown method 'beam'"),
        (["--host", "nowhere.invalid"], "cannot listen on nowhere.invalid"),
        (["one", "-m", "two"], "given twice"),
    ):
        assert main(["serve", *flags]) == 2
        assert message in capsys.readouterr().err
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["serve"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'anyorder[serve]'" in error
