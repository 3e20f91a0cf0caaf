"""The generated pages of docs/ say what the source says, and a stale one is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from scripts.generate_docs import DOCS, PAGES, main, methods_page, recipes_page

import anyorder
from anyorder.core import lookup
from anyorder.core.options import describe
from anyorder.methods import autoregressive
from anyorder.training.objectives import next_token
from anyorder.training.readers import Source


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == PAGES[name]()


def test_check_says_so() -> None:
    assert main(["--check"]) == 0


def test_every_method_and_option_is_on_the_page() -> None:
    for method in anyorder.methods():
        assert f"## {method.name}\n" in methods_page()
        for option in method.options:
            assert f"| `{option.name}` | {option.allowed} |" in methods_page()


def test_every_objective_network_and_source_field_is_on_the_page() -> None:
    page = recipes_page()
    for folder in ("training/objectives", "training/networks"):
        for name in lookup.names(folder):
            assert f"### [{name}](../src/anyorder/{folder}/{name}.py)\n" in page
    heads = [line[4:].partition("]")[0] for line in page.splitlines() if line[:4] == "## ["]
    assert heads == [
        *("model", "data", "objective", "optimizer", "schedule", "run", "teacher", "adapter")
    ]
    for option in describe(Source):
        assert f"| `{option.name}` | " in page


def test_a_stale_page_is_noticed_and_renewed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = tmp_path / "docs"
    assert main(["--check"], copies) == 1
    assert main([], copies) == 0
    assert main(["--check"], copies) == 0
    for name, word, other in (
        ("methods.md", "left to right", "right to left"),
        ("recipes.md", "optimiser steps", "other steps"),
    ):
        shutil.copy(copies / name, tmp_path)
        text = (copies / name).read_text("utf-8")
        (copies / name).write_text(text.replace(word, other, 1), "utf-8")
        capsys.readouterr()
        assert main(["--check"], copies) == 1
        told = capsys.readouterr().err
        assert other in told and f"docs/{name} is stale; run `make docs`" in told
        shutil.copy(tmp_path / name, copies)


@pytest.mark.parametrize("module", [autoregressive, next_token])
def test_an_edit_makes_the_page_stale(monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    monkeypatch.setattr(module, "__doc__", "Something else.")
    assert main(["--check"]) == 1
