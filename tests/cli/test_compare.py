"""`anyorder compare`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import Run

import anyorder

FLAGS = ["--max-new-tokens", "8", "--ignore-end"]


def test_answers_are_those_of_each_method(run: Run, model: str) -> None:
    names = ["jacobi", "autoregressive", "speculative"]
    options = ["-o", "speculative.drafter=suffix_automaton", "-o", "speculative.length=3"]
    data = run(
        "compare", "The sea", "--methods", ",".join(names), "-m", model, *FLAGS, *options, "--json"
    ).json
    assert data["prompt"] == "The sea" and len(data["answers"]) == 3
    engine = anyorder.Engine(model)
    for name, answer in zip(names, data["answers"], strict=True):
        given = {"drafter": "suffix_automaton", "length": 3} if name == "speculative" else {}
        request = anyorder.Request(
            prompt="The sea", method=name, options=given, max_new_tokens=8, ignore_end=True
        )
        expected = engine.generate(request)
        assert answer["method"] == name and answer["model"] == model
        assert answer["tokens"] == expected.tokens
        assert answer["report"]["num_new_tokens"] == 8 and answer["seconds"] > 0


def test_texts_table_and_page(run: Run, model: str, tmp_path: Path) -> None:
    page = tmp_path / "side by side.html"
    methods = "autoregressive,jacobi"
    answer = run("compare", "A <b>", "--methods", methods, "-m", model, *FLAGS, "--html", str(page))
    lines = answer.out.splitlines()
    assert lines[0] == "autoregressive" and "jacobi" in lines
    rows = [line.split() for line in lines if line.rstrip().endswith("same text")]
    assert [row[:2] for row in rows] == [["autoregressive", "8"], ["jacobi", "8"]]
    assert rows[0][2:4] == ["8", "1.00"] and int(rows[1][2]) <= 8
    html = page.read_text("utf-8")
    assert html.count("<svg ") == 2
    assert "<b>" not in html.replace("<body", "")
    assert "//" not in html.replace("http://www.w3.org/2000/svg", "")  # nothing from elsewhere


def test_several_models(run: Run, model: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.symlink_to(model)
    methods = f"autoregressive@{other},autoregressive,jacobi@{other}"
    data = run("compare", "x", "--methods", methods, "-m", model, *FLAGS, "--json").json
    assert [answer["model"] for answer in data["answers"]] == [str(other), model, str(other)]
    assert [answer["method"] for answer in data["answers"]][2] == "jacobi"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--methods lacks names", "autoregressive"]),
        (["--methods", "jacoby"], ["unknown method 'jacoby'", "did you mean 'jacobi'"]),
        (["--methods", "jacobi", "--method", "jacobi"], ["--method names one method"]),
        (["--methods", "jacobi,"], ["unknown method ''"]),
        (["--methods", "jacobi@"], ["jacobi@ without a model"]),
        (["--methods", "jacobi", "-o", "size=3"], ["METHOD.NAME=VALUE", "'size=3'"]),
        (["--methods", "jacobi", "-o", "lookahead.size=3"], ["lookahead", "jacobi"]),
        (["--methods", "jacobi", "-o", "jacobi.siz=3"], ["unknown jacobi option", "size"]),
        (["--methods", "jacobi", "--html", "x.txt"], ["ending in .html"]),
        (["--methods", "jacobi", "--html", "nowhere/x.html"], ["existing folder"]),
    ],
)
def test_mistakes(run: Run, arguments: list[str], words: list[str]) -> None:
    answer = run("compare", "x", *arguments)
    assert answer.code == 2 and answer.out == "" and answer.err.count("\n") == 1
    assert all(word in answer.err for word in words)
