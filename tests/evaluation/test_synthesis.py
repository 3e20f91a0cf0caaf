"""Synthetic text: every line as if drawn alone, resumed exactly, never mixed with another run's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_engine

from anyorder.core.errors import UserError
from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.evaluation import synthesis
from anyorder.evaluation.prompt_sets import PROMPT_SETS
from anyorder.evaluation.synthesis import Synthesis, synthesize


class Letters:
    """A tokenizer of single letters, for the tiny model."""

    def encode(self, text: str, **_: object) -> list[int]:
        return [ord(letter) - ord("A") for letter in text]


PLAN = Synthesis(
    prompts=("abc", "hello", "z"),
    num=8,
    controls=Request(
        prompt="", max_new_tokens=12, temperature=1.0, seed=100, stop_tokens=(1, 2, 3, 4)
    ),
    keep_tokens=True,
)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = tiny_engine()
    monkeypatch.setattr(
        synthesis,
        "_request",
        lambda plan, index: replace(
            plan.controls,
            prompt=Letters().encode(plan.prompts[index % len(plan.prompts)]),
            seed=plan.controls.seed + index,
        ),
    )
    return made


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_lines_are_what_the_engine_draws(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    told: list[int] = []
    made = synthesize(engine, PLAN, file, progress=lambda stage, done, total: told.append(done))
    found = lines(file)
    assert made.num_lines == made.num_new == 8 and told == [*range(1, 9)]
    assert [line["index"] for line in found] == [*range(8)]
    assert [line["prompt"] for line in found[:4]] == ["abc", "hello", "z", "abc"]
    for index in (0, 3, 7):
        line = found[index]
        prompt = Letters().encode(line["prompt"])
        request = replace(PLAN.controls, prompt=prompt, seed=100 + index)
        alone = engine.generate([request])[0]
        assert line["tokens"] == alone.tokens and line["seed"] == 100 + index
        assert line["finish_reason"] == alone.finish_reason
    assert found[0]["tokens"] != found[3]["tokens"]  # one prompt, two seeds
    reasons = [line["finish_reason"] for line in found]
    assert made.num_unfinished == reasons.count("length") and len(set(reasons)) == 2


@pytest.mark.parametrize("finished_only", [False, True])
def test_a_killed_run_goes_on(engine: Engine, tmp_path: Path, finished_only: bool) -> None:
    plan = replace(PLAN, finished_only=finished_only)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    made = synthesize(engine, plan, whole)
    data = whole.read_bytes()
    for kept in (0, 1, len(data) // 3, len(data) // 2, len(data) - 1, len(data)):
        cut.write_bytes(data[:kept])
        resumed = synthesize(engine, plan, cut)
        assert cut.read_bytes() == data
        assert resumed.num_lines == made.num_lines
    reasons = {line["finish_reason"] for line in lines(whole)}
    assert reasons == ({"stop"} if finished_only else {"stop", "length"})
    longer = synthesize(engine, replace(plan, num=10), cut)
    assert longer.num_lines >= made.num_lines and cut.read_bytes().startswith(data)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"prompts": ("other",)}, "line 1 was made with another prompt ('abc', not 'other')"),
        ({"controls": replace(PLAN.controls, seed=5)}, "another seed (100, not 5)"),
        ({"controls": replace(PLAN.controls, temperature=0.5)}, "another temperature"),
    ],
)
def test_another_runs_file_is_refused(
    engine: Engine, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    file = tmp_path / "a.jsonl"
    synthesize(engine, PLAN, file)
    before = file.read_bytes()
    with pytest.raises(UserError) as refused:
        synthesize(engine, replace(PLAN, **change), file)
    assert complaint in str(refused.value) and file.read_bytes() == before


@pytest.mark.parametrize("text", ["a text\n", "[1]\n", '{"text": "x"}\n', '{"index": "0"}\n'])
def test_a_strange_file_is_refused(engine: Engine, tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match="line 1 "):
        synthesize(engine, PLAN, file)
    assert file.read_text() == text
    with pytest.raises(UserError, match="cannot write"):
        synthesize(engine, PLAN, tmp_path / "none" / "a.jsonl")


def test_chats_have_messages() -> None:
    plan = replace(PLAN, chat=True, keep_tokens=False)
    request = synthesis._request(plan, 4)
    assert request.prompt == [{"role": "user", "content": "hello"}] and request.seed == 104


def test_built_in_prompts() -> None:
    for prompts in PROMPT_SETS.values():
        assert len(prompts) == len(set(prompts)) >= 200
        assert all("{" not in prompt and prompt[-1] in ".?" for prompt in prompts)
    assert sum(map(len, PROMPT_SETS.values())) >= 700
