"""`score`, `inspect`, `methods`, `models`, `doctor` and the program without a verb."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.cli.conftest import Run

import anyorder
from anyorder.cli.main import VERBS
from anyorder.core import lookup
from anyorder.model import catalog
from anyorder.model.backends.native import LEVELS

TEXT = "The capital of France is Paris, and the capital of Italy is Rome."


# ------------------------------------------------------------------------------------------- score
def test_score(run: Run, model: str) -> None:
    data = run("score", TEXT, "-m", model, "--json").json
    expected = anyorder.Engine(model).score(TEXT)
    assert data["tokens"] == expected.tokens and data["logprobs"] == expected.logprobs
    assert len(data["texts"]) == len(data["tokens"]) == len(data["logprobs"]) + 1
    assert data["total"] == pytest.approx(sum(data["logprobs"]))
    assert data["perplexity"] == pytest.approx(math.exp(-data["total"] / len(data["logprobs"])))
    lines = run("score", "-m", model, stdin=f"{TEXT}\n").out.splitlines()
    assert lines[0].split()[-1] == f"{data['total']:.4f}"
    assert lines[2].split() == ["perplexity", f"{data['perplexity']:.4f}"]


def test_score_lists_tokens(run: Run, model: str) -> None:
    data = run("score", TEXT, "-m", model, "--json").json
    rows = run("score", TEXT, "-m", model, "--tokens").out.splitlines()[:-3]
    assert len(rows) == len(data["tokens"])
    assert rows[3].split()[:2] == [f"{data['logprobs'][2]:.4f}", str(data["tokens"][3])]


# ----------------------------------------------------------------------------------------- inspect
def test_inspect(run: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "mask.svg"
    outcome = run("inspect", TEXT, "-m", model, "--output", str(file))
    assert outcome.code == 0 and outcome.out.splitlines()[-1] == "PASS (tolerance 0.001)"
    ElementTree.fromstring(file.read_text("utf-8"))
    data = run("inspect", "-m", model, "--json").json
    assert data["passed"] and data["backward_influence"] == 0
    assert [c["name"] for c in data["comparisons"]][1:] == ["token by token", "each prefix alone"]


def test_inspect_fails_with_exit_code_1(run: Run, model: str) -> None:
    outcome = run("inspect", TEXT, "-m", model, "--tolerance", "0")
    assert outcome.code == 1 and outcome.out.splitlines()[-1] == "FAIL (tolerance 0)"


# ----------------------------------------------------------------------------------------- methods
def test_methods(run: Run) -> None:
    names = [line.split()[0] for line in run("methods").out.splitlines()[1:]]
    assert names == list(lookup.names("methods"))
    assert [entry["name"] for entry in run("methods", "--json").json] == names


def test_one_method(run: Run) -> None:
    lines = run("methods", "beam_search").out.splitlines()
    (width,) = (line for line in lines if line.split()[:1] == ["width"])
    assert "4" in width and "from 1 to 64" in width and "beams kept" in width
    schema = run("methods", "beam_search", "--json").json["options"]
    assert schema["properties"]["width"]["maximum"] == 64
    assert "no options" in run("methods", "autoregressive").out


# ------------------------------------------------------------------------------------------ models
def test_models_list_and_show(run: Run, model: str) -> None:
    rows = run("models", "list").out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == catalog.names()
    here = [" yes " in row for row in rows]
    assert here == [name not in catalog.CATALOG for name in catalog.names()]
    paths = [entry["path"] for entry in run("models", "list", "--json").json]
    assert [path is not None for path in paths] == here
    shown = run("models", "show", next(iter(catalog.CATALOG)))
    assert "Apache-2.0" in shown.out and "not on this machine" in shown.out
    assert run("models", "show", model, "--json").json["context_length"] == 256
    assert "has chat template  yes" in run("models", "show", model).out


def test_models_pull_and_rm(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verbs hand over to the catalog, whose own tests download and delete."""
    monkeypatch.setattr(catalog, "pull", lambda name, progress: tmp_path / f"{name}.gguf")
    outcome = run("models", "pull", "small")
    assert outcome.out == "" and outcome.err == f"small is at {tmp_path / 'small.gguf'}\n"
    monkeypatch.setattr(catalog, "remove", lambda name: 2_500_000)
    assert run("models", "rm", "small").err == "removed small, 2.5 MB freed\n"


def test_models_pack(run: Run, model: str, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    outcome = run("models", "pack", model, str(folder), "--description", "tiny")
    assert outcome.err.startswith(f"{folder} holds 0.") and outcome.err.endswith(" MB\n")
    shown = run("models", "show", str(folder), "--json").json
    assert shown["context_length"] == 256
    data = json.loads((folder / "about.json").read_text())
    assert (data["description"], data["licence"]) == ("tiny", "Apache-2.0")
    assert run("score", TEXT, "-m", str(folder)).code == 0
    for arguments, words in (
        (("pack", model, str(folder)), "needs a run or model, the folder to write, and --descr"),
        (("pack",), "needs a model's name"),
        (("show", model, str(folder)), "is for `anyorder models pack`; leave it out"),
        (("list", "--licence", "MIT"), "'MIT' is for `anyorder models pack`"),
    ):
        outcome = run("models", *arguments)
        assert outcome.code == 2 and words in outcome.err


# ------------------------------------------------------------------------------------------ doctor
def test_doctor(run: Run) -> None:
    data = run("doctor", "--json").json
    assert data["versions"]["anyorder"] == anyorder.__version__
    assert data["torch"]["devices"][0] == "cpu" and data["torch"]["threads"] == 1
    assert "math" in data["kernels"]["torch_attention"]
    assert data["kernels"]["few_rows"] in (None, *LEVELS[1:])
    assert data["models"]["offline"] is True and data["models"]["bytes"] == 0
    text = run("doctor").out
    assert all(f"\n{section}\n" in f"\n{text}" for section in data)


# ------------------------------------------------------------------------------------ without verb
def test_help_lists_the_verbs(run: Run) -> None:
    for arguments in ((), ("--help",), ("help",)):
        outcome = run(*arguments)
        assert outcome.code == 0 and outcome.err == ""
        assert all(f"\n  {verb} " in outcome.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(run: Run, verb: str) -> None:
    for arguments in ((verb, "--help"), ("help", verb)):
        outcome = run(*arguments)
        assert outcome.code == 0 and outcome.out.startswith(f"usage: anyorder {verb}")


def test_version(run: Run) -> None:
    assert run("--version").out == f"anyorder {anyorder.__version__}\n"


def test_json_is_utf_8_text(run: Run, model: str) -> None:
    outcome = run("score", "naïve café", "-m", model, "--json")
    assert "naïve" not in outcome.err and json.loads(outcome.out)["texts"]
