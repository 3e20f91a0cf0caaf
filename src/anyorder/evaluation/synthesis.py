"""Text made by a model, as a file of JSON lines to train others on.

A line is a function of its number: prompts go round in order, and line i is drawn with the first
seed plus i. Many lines are made at once and written in order, so a run that was interrupted goes on
after the last whole line. (In float32 a sum may come out differently in other company, so that once
in a long while a token of a resumed run differs from what one run in one piece would have drawn.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anyorder.core.errors import UserError
from anyorder.core.request import Completion, Prompt, Request
from anyorder.engine.engine import Engine
from anyorder.evaluation.generation import answers

_SAME = ("prompt", "model", "method", "temperature", "seed")
"""What a line of an earlier run must have been made with."""


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """What to make."""

    prompts: tuple[str, ...]
    suffix: str = ""
    """Follows every prompt when the model is asked; not in the lines."""
    num: int
    """Lines, unfinished ones included where they are left out."""
    controls: Request
    """Its prompt counts for nothing; its seed is the first line's."""
    chat: bool = False
    """Are prompts a user's messages? Lines then have `messages` too, to train on as a chat."""
    keep_tokens: bool = False
    finished_only: bool = False
    """Leave out what was cut off at the limit."""


@dataclass(frozen=True, kw_only=True)
class Synthesized:
    """What came of it."""

    num_lines: int
    """In the file."""
    num_new: int
    num_unfinished: int
    """Of the new ones; left out where only finished ones are wanted."""


def synthesize(
    engine: Engine,
    plan: Synthesis,
    file: Path,
    *,
    in_flight: int = 256,
    progress: Callable[[str, int, int], None] | None = None,
) -> Synthesized:
    """Write the lines that are missing. Raises UserError if the file was made otherwise."""
    try:
        num_lines, first = _resume(file, plan, engine.abilities.name)
        num_new = num_unfinished = 0
        requests = (_request(plan, index) for index in range(first, plan.num))
        with file.open("a", encoding="utf-8") as stream:
            found = enumerate(answers(engine, requests, in_flight=in_flight), first)
            for index, answer in found:
                unfinished = answer.completion.finish_reason == "length"
                num_unfinished += unfinished
                if not (unfinished and plan.finished_only):
                    line = _line(plan, index, engine.abilities.name, answer.completion)
                    stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                    stream.flush()
                    num_new += 1
                if progress is not None:
                    progress("synthesizing", index + 1, plan.num)
    except OSError as error:
        raise UserError(
            f"cannot write {file}: {error.strerror or error}; what was written before stays, and "
            "the same command goes on after it."
        ) from None
    return Synthesized(
        num_lines=num_lines + num_new, num_new=num_new, num_unfinished=num_unfinished
    )


def _text(plan: Synthesis, index: int) -> str:
    return plan.prompts[index % len(plan.prompts)]


def _request(plan: Synthesis, index: int) -> Request:
    text = _text(plan, index)
    prompt: Prompt = text + plan.suffix
    if plan.chat:
        prompt = [{"role": "user", "content": text + plan.suffix}]
    return replace(plan.controls, prompt=prompt, seed=plan.controls.seed + index)


def _line(plan: Synthesis, index: int, model: str, completion: Completion) -> dict[str, Any]:
    line: dict[str, Any] = {"index": index, "prompt": _text(plan, index), "text": completion.text}
    if plan.chat:
        line["messages"] = [
            {"role": "user", "content": line["prompt"]},
            {"role": "assistant", "content": completion.text},
        ]
    if plan.keep_tokens:
        line["tokens"] = completion.tokens
    return {
        **line,
        "model": model,
        "method": plan.controls.method,
        "temperature": plan.controls.temperature,
        "seed": plan.controls.seed + index,
        "finish_reason": completion.finish_reason,
    }


def _resume(file: Path, plan: Synthesis, model: str) -> tuple[int, int]:
    """How many lines there are, and the number of the first that is missing; what a killed run left
    of a line is cut off."""
    if not file.exists():
        return 0, 0
    num_lines = first = size = 0
    for number, (raw, line) in enumerate(_lines(file), 1):
        index = line.get("index")
        if not isinstance(index, int) or not first <= index:
            raise UserError(f"{file} line {number} has no index of its own; give another file.")
        expected = {
            "prompt": _text(plan, index),
            "model": model,
            "method": plan.controls.method,
            "temperature": plan.controls.temperature,
            "seed": plan.controls.seed + index,
        }
        for name in _SAME:
            if line.get(name) != expected[name]:
                raise UserError(
                    f"{file} line {number} was made with another {name} ({line.get(name)!r}, not "
                    f"{expected[name]!r}); ask for the same again, or give another file."
                )
        num_lines, first, size = num_lines + 1, index + 1, size + len(raw)
    with file.open("rb+") as stream:
        stream.truncate(size)
    return num_lines, first


def _lines(file: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            if not raw.endswith(b"\n"):
                return
            try:
                line = json.loads(raw)
            except ValueError:
                line = None
            if not isinstance(line, dict):
                raise UserError(
                    f"{file} line {number} is not a line of synthetic data; give another file."
                )
            yield raw, line
