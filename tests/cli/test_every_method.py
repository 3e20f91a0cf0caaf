"""Every method from the command line, on a saved folder of each kind that can do it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.cli.trained_folders import KINDS, folder, model

from anyorder.core import lookup
from anyorder.core.method import Method
from anyorder.core.request import Request
from anyorder.engine.engine import Engine

PROMPT, LENGTH = "pads and pens: ", 12


def able(method: str) -> list[str]:
    """The kinds of networks that can do it with its default options."""
    cls: type[Method] = lookup.find("methods", method, kind="method")
    kinds = []
    for name in KINDS:
        abilities = model(name).abilities
        if abilities.kind in ("decoder", "calm") and not (
            cls.needs.missing(abilities, ("target",)) or cls().missing({"target": abilities})
        ):
            kinds.append(name)
    return kinds


def source(kind: str) -> list[str]:
    """Flags that name the folder; that of heads stands beside its target's."""
    if KINDS[kind].network == "medusa":
        return ["-m", str(folder(str(KINDS[kind].beside))), "--draft", str(folder(kind))]
    return ["-m", str(folder(kind))]


@pytest.mark.parametrize("method", lookup.names("methods"))
def test_a_saved_folder_answers_like_the_network_that_was_saved(run: Run, method: str) -> None:
    kinds = able(method)
    assert kinds, "there is a folder for every method"
    for kind in kinds:
        request = Request(prompt=PROMPT, method=method, max_new_tokens=LENGTH, seed=3)
        expected = Engine(model(kind)).generate(request)
        flags = ["--method", method, "--max-new-tokens", str(LENGTH), "--seed", "3"]
        data = run("generate", PROMPT, *source(kind), *flags, "--json").json
        assert data["method"] == method
        assert data["tokens"] == list(expected.tokens), kind
        assert data["report"]["num_forward_passes"] > 0 and expected.tokens, kind


def test_a_draft_folder_says_what_drafts(run: Run) -> None:
    """Nobody names the drafter, neither to use it nor to set its options."""
    flags = ["--max-new-tokens", str(LENGTH), "--seed", "3"]
    speculative = [*flags, "--method", "speculative", "-o", "adaptive=no", "--stats"]
    plain = run("generate", PROMPT, *source("text"), *flags).out
    for options in ([], ["-o", "drafter.nodes=4"], ["-o", "drafter=medusa"]):
        told = run("generate", PROMPT, *source("heads"), *speculative, *options)
        assert told.out == plain and "accepted at a time" in told.err, told.err
    wrong = run("generate", PROMPT, *source("heads"), *speculative, "-o", "drafter.longest=3")
    assert wrong.code == 2 and "unknown medusa option 'longest'" in wrong.err
    alone = run("generate", PROMPT, *source("text"), *speculative, "-o", "drafter.nodes=4")
    assert alone.code == 2 and "unknown prompt_lookup option 'nodes'" in alone.err
    two = ["-m", str(folder("text")), "--draft", str(folder("text"))]
    told = run("generate", PROMPT, *two, *speculative, "-o", "drafter.confidence=0")
    assert told.out == plain and "passes by model: target" in told.err and "draft" in told.err


SIDES = {"masked_diffusion": "masks", "insertion": "edits", "calm": "patches"}


def compared() -> list[str]:
    named = [f"{method}@{folder(kind)}" for method, kind in SIDES.items()]
    return [PROMPT, "--methods", ",".join(named), "--max-new-tokens", str(LENGTH), "--seed", "3"]


def test_three_of_them_side_by_side(run: Run, tmp_path: Path) -> None:
    """As JSON the answers of each alone; as text and table; as a page with every pass."""
    page = tmp_path / "page.html"
    answers = run("compare", *compared(), "--json", "--html", str(page)).json["answers"]
    told = run("compare", *compared()).out
    html = page.read_text("utf-8")
    assert html.count("<svg ") == len(SIDES) == html.count('<p class="board"')
    boards = json.loads(html.partition("const boards = ")[2].partition(";\n")[0])
    stood = {text for _, place, text in boards[1]["history"] if text and place < LENGTH}
    assert stood - {text for text, *_ in boards[1]["final"]}, "insertion took some out again"
    for (method, kind), answer in zip(SIDES.items(), answers, strict=True):
        request = Request(prompt=PROMPT, method=method, max_new_tokens=LENGTH, seed=3)
        alone = Engine(model(kind)).generate(request)
        report = answer["report"]
        assert (answer["method"], answer["tokens"]) == (method, list(alone.tokens))
        assert answer["seconds"] > 0 and report["num_forward_passes"] > 0
        assert {entry["step"] for entry in answer["trace"]} == {e.step for e in alone.trace}
        costs = [str(report["num_new_tokens"]), str(report["num_forward_passes"])]
        costs += [f"{report['tokens_per_pass']:.2f}"]
        title, row = [line for line in told.splitlines() if line.startswith(f"{method} on ")]
        numbers = [word for word in row.split() if word.replace(".", "").isdigit()]
        assert numbers[:3] == costs and len(numbers) == 5, row
        assert title == f"{method} on {folder(kind)}"


def test_a_trace_keeps_what_was_taken_out(run: Run, tmp_path: Path) -> None:
    flags = ["--method", "insertion", "--max-new-tokens", str(LENGTH), "--seed", "3"]
    page, data = tmp_path / "trace.html", tmp_path / "trace.json"
    for file in (page, data):
        assert run("generate", PROMPT, *source("edits"), *flags, "--trace", str(file)).code == 0
    assert '"history": [[' in page.read_text("utf-8")
    assert any(entry["token"] is None for entry in json.loads(data.read_text())["history"])
