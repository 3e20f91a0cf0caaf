"""`--canvas` of `anyorder generate` and `anyorder compare`."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Run

import anyorder

CANVAS = "The capital of France is<|mask:3|>, and of Italy<|mask|>."
FIXED = r"(?s)The capital of France is.*, and of Italy.*\."


@pytest.fixture(scope="module")
def masked(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny checkpoint, as one that was trained to fill in masks."""
    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("masked") / "tiny"))
    config = json.loads((folder / "config.json").read_text())
    names = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    (mask,) = (entry["id"] for entry in names if entry["content"] == "<|mask|>")
    trained = {"attention": ["bidirectional"], "mask_token": mask}
    trained |= {"block_size": 0, "token_shift": False}
    (folder / "config.json").write_text(json.dumps(config | {"anyorder": trained}))
    return str(folder)


def test_text_is_filled_in_around_what_is_fixed(run: Run, masked: str, tmp_path: Path) -> None:
    flags = ("-m", masked, "--method", "masked_diffusion")
    answer = run("generate", "Q:", *flags, "--canvas", CANVAS)
    assert answer.code == 0 and re.fullmatch(FIXED, answer.out.removesuffix("\n"))
    request = anyorder.Request(prompt="Q:", method="masked_diffusion", canvas=CANVAS)
    assert answer.out == anyorder.Engine(masked).generate(request).text + "\n"
    file = tmp_path / "canvas.txt"
    file.write_text(CANVAS + "\n")
    assert run("generate", "Q:", *flags, "--canvas-file", str(file)).out == answer.out
    data = run("generate", "Q:", *flags, "--canvas", CANVAS, "--json").json
    assert data["text"] + "\n" == answer.out
    assert sum(entry["step"] > 0 for entry in data["trace"]) == 4


def test_on_a_terminal_what_was_filled_in_is_coloured(
    run: Run, masked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("-m", masked, "--method", "masked_diffusion", "-n", "2", "--canvas", CANVAS)
    plain = run("generate", "Q:", *flags).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = run("generate", "Q:", *flags).out
    assert shown.count("\x1b[") > 4 and shown.startswith(
        "--- 1 of 2 ---\nThe capital of France is\x1b"
    )
    assert plain.startswith("--- 1 of 2 ---\nThe capital of France is")


def test_compared_methods_fill_the_same_canvas(run: Run, masked: str, tmp_path: Path) -> None:
    flags = ("-m", masked, "--methods", "masked_diffusion,gibbs,mask_predict")
    page = tmp_path / "page.html"
    flags += ("--canvas", CANVAS, "--min-new-tokens", "5")
    data = run("compare", "Q:", *flags, "--json", "--html", str(page)).json
    for answer in data["answers"]:
        assert re.fullmatch(FIXED, answer["text"]), answer["method"]
        assert answer["report"]["num_new_tokens"] == len(answer["trace"])
    assert page.read_text("utf-8").count("<svg ") == 3
    assert run("compare", "Q:", *flags).out.count("The capital of France is") == 3


MISTAKES = [
    (["--canvas", "nothing open"], ["the canvas has no place to fill in", "<|mask|>"]),
    (["--canvas", "a <|mask:0|>"], ["'<|mask:0|>', which marks no place"]),
    (["--canvas", "<|mask:300|>"], ["300 places", "context is 256"]),
    (["--canvas", "<|mask:100|>", "--cache-tokens", "32"], ["need more than the cache of 32"]),
    (["--canvas", "<|im_end|><|mask|>"], ["end token", "set ignore_end"]),
    (["--canvas", "<|mask|>", "--max-new-tokens", "9"], ["leave max_new_tokens out"]),
    (["--canvas", "a", "--canvas-file", "b"], ["--canvas and --canvas-file exclude"]),
    (["--canvas-file", "nowhere.txt"], ["cannot read 'nowhere.txt'"]),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=lambda value: " ".join(value)[:40])
@pytest.mark.parametrize("verb", [["generate", "--method"], ["compare", "--methods"]])
def test_mistakes(
    run: Run, masked: str, verb: list[str], arguments: list[str], words: list[str]
) -> None:
    method = [*verb[1:], "masked_diffusion"]
    answer = run(verb[0], "Q:", "-m", masked, *method, *arguments)
    assert answer.code == 2 and answer.out == "" and answer.err.count("\n") == 1, answer
    assert all(word in answer.err for word in words), answer.err


def test_a_method_that_cannot_fill_names_those_that_can(run: Run, masked: str, model: str) -> None:
    answer = run("generate", "Q:", "-m", model, "--canvas", CANVAS)
    assert answer.code == 2
    assert (
        "autoregressive cannot fill in a canvas. Methods of this model that can: none."
        in answer.err
    )


def test_a_canvas_needs_no_prompt_where_masks_are_told_in_place(run: Run, masked: str) -> None:
    flags = ("-m", masked, "--method", "masked_diffusion")
    answer = run("generate", *flags, "--canvas", CANVAS)
    assert answer.code == 0 and re.fullmatch(FIXED, answer.out.removesuffix("\n"))
    answer = run("generate", *flags, "--canvas", CANVAS, "--guidance-scale", "2")
    assert answer.code == 2 and "steers towards the prompt, and the prompt is empty" in answer.err
