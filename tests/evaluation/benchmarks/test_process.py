"""Worker processes, environments and conversions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.cli.checkpoint import save_checkpoint

from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.evaluation.benchmarks import peers
from anyorder.evaluation.benchmarks.peers import RECIPES, NotPrepared, Peer, Workshop, read_peers
from anyorder.evaluation.benchmarks.process import WORKER, Worker, WorkerDied
from anyorder.evaluation.benchmarks.sides import SIDES, is_peer


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "ANYORDER_OFFLINE": "1", **changes}


# ---------------------------------------------------------------------------------------- a worker
def test_a_worker_answers_as_the_engine_does(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "tiny")
    command = [sys.executable, "-P", str(WORKER), "anyorder", str(folder), "float32", "1"]
    engine, prompt = Engine(folder), [5, 6, 7, 8, 9]
    worker = Worker(command, environment({"OMP_NUM_THREADS": "1"}))
    try:
        answer = worker.generate([prompt, prompt[1:]], 6)
        assert answer.peak_mb > 50 and 0 < answer.seconds < answer.since_start
        looked = worker.generate([prompt], 6, lookup=True)
        for tokens, start in zip([*answer.tokens, *looked.tokens], (0, 1, 0), strict=True):
            request = Request(prompt=prompt[start:], max_new_tokens=6, ignore_end=True)
            assert tokens == engine.generate([request])[0].tokens
        nats = worker.ask({"do": "likelihood", "windows": [prompt, prompt[2:]]})["nats"]
        scores = (engine.score(prompt), engine.score(prompt[2:]))
        assert nats == pytest.approx(-sum(sum(score.logprobs) for score in scores), rel=1e-5)
        steps = worker.ask({"do": "explain", "prompt": prompt, "num_new": 6})["found"]
        assert [step["token"] for step in steps] == answer.tokens[0]
        best = [max(step["others"], key=lambda item: item[1])[0] for step in steps]
        assert best == answer.tokens[0]
        assert all(0 < sum(p for _, p in step["others"]) < 1.001 for step in steps)
        assert worker.ask({"do": "vocabulary"})["found"] == engine.abilities.vocabulary_size
    finally:
        worker.close()


def test_a_worker_that_dies_leaves_its_last_words() -> None:
    command = [sys.executable, "-P", str(WORKER), "anyorder", "no such model", "float32", "1"]
    worker = Worker(command, environment({}))
    try:
        with pytest.raises(WorkerDied, match="unknown model 'no such model'"):
            worker.generate([[1]], 1)
    finally:
        worker.close()


def test_a_worker_killed_says_so() -> None:
    worker = Worker([sys.executable, "-c", "import sys; sys.exit(3)"], environment({}))
    try:
        with pytest.raises(WorkerDied, match="exit code 3"):
            worker.ask({})
    finally:
        worker.close()


# ------------------------------------------------------------------------------------ environments
class Commands:
    """Stands in for subprocess.run; notes commands and fails where told."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.seen = fails, []  # type: tuple[str, list[list[str]]]

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.seen.append(command)
        if command[1:3] == ["-m", "venv"]:
            Path(command[3]).mkdir(parents=True)
        elif command[2].endswith("conversion.py"):
            Path(command[5]).write_text(" ".join(command[3:]))
        bad = bool(self.fails) and any(self.fails in word for word in command)
        return subprocess.CompletedProcess(command, int(bad), stdout="first\nno such thing\n")


def workshop(folder: Path) -> Workshop:
    return Workshop(folder=folder, environment=environment, tell=lambda _: None)


PEER = Peer(name="x", title="X", requirements=("torch==1", "x==2"), options=("--no-cache-dir",))


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Commands()
    monkeypatch.setattr(peers.subprocess, "run", commands)
    shop = workshop(tmp_path)
    python = shop.python(PEER)
    assert [command[-1] for command in commands.seen[1:]] == ["torch==1", "x==2"]
    assert all("--no-cache-dir" in command for command in commands.seen[1:])
    assert commands.seen[1][0] == str(python) and PEER.version() == "2"
    assert shop.python(PEER) == python and len(commands.seen) == 3
    changed = Peer(name="x", title="X", requirements=("torch==1", "x==3"))
    shop.python(changed)
    assert len(commands.seen) == 6


def test_an_environment_that_fails_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.subprocess, "run", Commands(fails="x==2"))
    shop = workshop(tmp_path)
    for _ in range(2):
        with pytest.raises(NotPrepared, match="no such thing"):
            shop.python(PEER)


def test_conversions_go_step_by_step_and_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = Commands()
    monkeypatch.setattr(peers.subprocess, "run", commands)
    shop, model = workshop(tmp_path / "peers"), tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    sides = {side.name: side for side in SIDES}
    everyone = read_peers()
    made = shop.weights(sides["transformers bfloat16"], model, everyone)
    done = [command[3:] for command in commands.seen if "conversion.py" in command[2]]
    assert [words[0] for words in done] == ["safetensors", "rounded"]
    assert done[0][1] == str(model) and done[1][1].endswith("safetensors-float32")
    assert done[1][3:] == ["bfloat16"] and made.exists()
    before = len(commands.seen)
    assert shop.weights(sides["transformers bfloat16"], model, everyone) == made
    assert shop.weights(sides["llama.cpp as it comes"], model, everyone) == model
    assert len(commands.seen) == before
    model.write_bytes(b"others")
    assert shop.weights(sides["transformers bfloat16"], model, everyone) != made
    assert not list((tmp_path / "peers" / "models").glob("*/unfinished-*"))


def test_every_side_can_be_prepared_and_every_version_is_pinned() -> None:
    everyone = read_peers()
    for side in SIDES:
        assert side.weights == "" or side.weights in RECIPES
        assert not is_peer(side) or side.engine in everyone
    for recipe in RECIPES.values():
        assert recipe.peer in everyone and (not recipe.source or recipe.source in RECIPES)
    for peer in everyone.values():
        assert all(line.count("==") == 1 for line in peer.requirements) and peer.version()
    flags = everyone["llama.cpp"].environment["CMAKE_ARGS"]
    assert (peers.HERE / "amx_tiles.h").exists() and str(peers.HERE / "amx_tiles.h") in flags


@pytest.mark.slow
def test_a_real_environment(tmp_path: Path) -> None:
    shop = workshop(tmp_path / "peers")
    python = shop.python(Peer(name="empty", title="nothing", requirements=()))
    out = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True)
    assert out.stdout.decode().strip() == str(tmp_path / "peers" / "empty")
    assert json.loads((tmp_path / "peers" / "empty" / "installed.json").read_text()) == [{}]
    with pytest.raises(NotPrepared, match="no-such-folder"):
        shop.python(Peer(name="bad", title="bad", requirements=("./no-such-folder",)))
